"""The optimum of the additive prediction."""

from __future__ import annotations

from tmpdiff_bench.allocators.base import Allocation, AllocationProblem
from tmpdiff_bench.allocators.citations import KNAPSACK
from tmpdiff_bench.allocators.multiple_choice import cheapest_choice
from tmpdiff_bench.allocators.oracle import Oracle, declares


@declares(evaluations=lambda steps, levels: max(1, steps * (levels - 1) + 1))
def knapsack(problem: AllocationProblem) -> Allocation:
    """Minimise the sum of single errors under the budget: the best plan if errors add up (H3).

    The multiple-choice knapsack (Kellerer, Pferschy and Pisinger 2004), solved exactly by
    `scipy.optimize.milp` (HiGHS). Uses the problem's single errors, or measures them, and measures
    the plan it chose: S(L-1) + 1 evaluations.
    """
    with Oracle(problem, "knapsack", KNAPSACK) as oracle:
        choice, total = cheapest_choice(problem, oracle.singles())
        return oracle.allocation(choice, predicted_error=total, lower_bound=total)
