"""The best of some random plans."""

from __future__ import annotations

import numpy as np

from tmpdiff_bench.allocators.base import Allocation, AllocationProblem
from tmpdiff_bench.allocators.options import seeded
from tmpdiff_bench.allocators.oracle import Oracle, cited, declares
from tmpdiff_bench.allocators.solvers.moves import ladders, random_plan, unseen


@declares(evaluations=lambda steps, levels: max(1, 2 * steps * (levels - 1)))
def random_search(
    problem: AllocationProblem,
    *,
    max_evaluations: int | None = None,
    rng: int | np.random.Generator = 0,
) -> Allocation:
    """Measure different random plans within the budget, and take the best.

    Plans are random and then raised where the budget leaves room, so none is wasteful (Bergstra and
    Bengio 2012 on why this is the baseline to beat). At most `max_evaluations` (default 2S(L-1), as
    `bisection`), fewer where there are not as many plans.
    """
    generator, source, limit = seeded(rng), cited("bergstra2012random"), max_evaluations
    with Oracle(problem, "random_search", source, limit=limit, allocator=random_search) as oracle:
        rungs = ladders(problem)
        for choice in unseen(oracle, lambda: random_plan(problem, rungs, generator)):
            oracle(choice)
        return oracle.allocation(oracle.best())
