"""The optimum of the quadratic prediction."""

from __future__ import annotations

import math

from tmpdiff_bench.allocators.base import Allocation, AllocationProblem
from tmpdiff_bench.allocators.citations import QUADRATIC
from tmpdiff_bench.allocators.halves import MAX_PLANS
from tmpdiff_bench.allocators.options import whole
from tmpdiff_bench.allocators.oracle import Oracle, declares
from tmpdiff_bench.allocators.quadratic import least_quadratic

MAX_NODES = 4_000
_NODES_BEFORE_ALL = 1_000  # where going through all plans is no matter of hours


@declares(lambda steps, levels: max(1, steps * (levels - 1) + 1), needs=("gram",), predicts="gram")
def gram(problem: AllocationProblem, *, max_nodes: int | None = None) -> Allocation:
    """Minimise s'Gs under the budget: the error predicted if deviations superpose (H1m).

    G holds the mean inner products of terminal deviations, s marks the plan's cells, and the
    predicted error is the root of s'Gs. Branch and bound over a convex reformulation (Billionnet,
    Elloumi and Plateau 2009) whose bound is nearly that of a semidefinite program; proven optimal
    where the search ends before `max_nodes` (default: 1,000 up to 2^30 plans, else 4,000: seconds
    at S = 50 and L = 3). If it does not, as where many plans are nearly equal, then up to 2^30
    plans, so two levels at 30 steps, each is tried, which takes seconds; above that `lower_bound`
    says how good the plan is at least (`gap`). Bounds hold to 1e-9 of s'Gs.

    Needs the problem's `gram`, hence S(L-1) single plans, and measures the plan it chose:
    S(L-1) + 1 evaluations. The prediction is a root mean square over samples, which is somewhat
    above the mean of their roots. If a single plan within the budget measured less than the plan
    chosen, that is returned: deviations did not superpose.

    Raises:
        UsageError: the problem has no `gram`.
    """
    few = len(problem.levels) ** problem.steps <= MAX_PLANS
    default = _NODES_BEFORE_ALL if few else MAX_NODES
    limit = default if max_nodes is None else whole("max_nodes", max_nodes, 0)
    with Oracle(problem, "gram", QUADRATIC) as oracle:
        form = problem.need_gram("gram")
        if problem.fits(problem.reference_cost):
            return oracle.allocation((0,) * problem.steps, predicted_error=0.0, lower_bound=0.0)
        found = least_quadratic(form, problem.step_costs, problem.budget, max_nodes=limit)
        oracle.gram()  # what was used goes into the account, and may be better than what is chosen
        oracle(found.choice)
        choice = problem.choice(oracle.best(first=found.choice))
        square = found.value if choice == found.choice else problem.predicted_square(choice)
        predicted = math.sqrt(max(square, 0.0))
        bound = math.sqrt(max(found.bound, 0.0))
        return oracle.allocation(choice, predicted_error=predicted, lower_bound=bound)
