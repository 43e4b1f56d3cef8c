"""The best of some random plans."""

from __future__ import annotations

import numpy as np

from tmpdiff_bench.allocators.base import Allocation, AllocationProblem
from tmpdiff_bench.allocators.options import seeded
from tmpdiff_bench.allocators.oracle import Oracle, cited, declares
from tmpdiff_bench.allocators.solvers.moves import random_plan

_TRIES = 20  # draws without a new plan before there is taken to be none


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
    generator = seeded(rng)
    limit = max_evaluations
    if limit is None:
        limit = max(1, 2 * problem.steps * (len(problem.levels) - 1))
    with Oracle(problem, "random_search", cited("bergstra2012random"), limit=limit) as oracle:
        tries = 0
        while oracle.left > 0 and tries < _TRIES:
            choice = random_plan(problem, generator)
            tries = tries + 1 if oracle.has(choice) else 0
            oracle(choice)
        return oracle.allocation(oracle.best())
