"""The optimum of the quadratic prediction."""

from __future__ import annotations

import math
import sys

from tmpdiff_bench.allocators.base import Allocation, AllocationProblem
from tmpdiff_bench.allocators.citations import QUADRATIC
from tmpdiff_bench.allocators.oracle import Oracle, declares
from tmpdiff_bench.allocators.quadratic import least_quadratic
from tmpdiff_bench.errors import UsageError

MAX_NODES = 4_000
_EXACT_STEPS = 30  # with two levels


@declares(evaluations=lambda steps, levels: max(1, steps * (levels - 1) + 1))
def gram(problem: AllocationProblem, *, max_nodes: int | None = None) -> Allocation:
    """Minimise s'Gs under the budget: the error predicted if deviations superpose (H1m).

    G holds the mean inner products of terminal deviations, s marks the plan's cells, and the
    predicted error is the root of s'Gs. Branch and bound over a convex reformulation (Billionnet,
    Elloumi and Plateau 2009) whose bound is nearly that of a semidefinite program; proven optimal
    where the search ends before `max_nodes`, otherwise `lower_bound` says how good the plan is at
    least (`gap`). Bounds hold to 1e-9 of s'Gs. By default the search has no limit for two levels at
    up to 30 steps, and 4,000 nodes above that: seconds at S = 50 and L = 3.

    Needs the problem's `gram`, hence S(L-1) single plans, and measures the plan it chose:
    S(L-1) + 1 evaluations. The prediction is a root mean square over samples, which is somewhat
    above the mean of their roots.

    Raises:
        UsageError: the problem has no `gram`.
    """
    small = len(problem.levels) <= 2 and problem.steps <= _EXACT_STEPS
    limit = max_nodes if max_nodes is not None else sys.maxsize if small else MAX_NODES
    if limit < 0:
        raise UsageError(f"max_nodes is {max_nodes}: it can't be negative")
    with Oracle(problem, "gram", QUADRATIC) as oracle:
        found = least_quadratic(oracle.gram(), problem.step_costs, problem.budget, max_nodes=limit)
        return oracle.allocation(
            found.choice,
            predicted_error=math.sqrt(max(found.value, 0.0)),
            lower_bound=math.sqrt(max(found.bound, 0.0)),
        )
