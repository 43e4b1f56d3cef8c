"""The optimum of the additive prediction."""

from __future__ import annotations

from tmpdiff_bench.allocators.base import Allocation, AllocationProblem, along
from tmpdiff_bench.allocators.oracle import Oracle, cited, declares
from tmpdiff_bench.allocators.solvers.multiple_choice import cheapest_choice


@declares(lambda steps, levels: max(1, steps * (levels - 1) + 1), predicts="sum")
def knapsack(problem: AllocationProblem) -> Allocation:
    """Minimise the sum of single errors under the budget: the best plan if errors add up (H3).

    The multiple-choice knapsack (Kellerer, Pferschy and Pisinger 2004), solved exactly by lists of
    undominated partial plans. Where these grow too long (hundreds of steps whose costs all differ)
    they are cut short, and `lower_bound` says what that may have missed. Uses the problem's single
    errors, or measures them, and measures the plan it chose: S(L-1) + 1 evaluations. If a single
    plan within the budget measured less than the plan chosen, that is returned: errors did not add
    up.
    """
    with Oracle(problem, "knapsack", cited("kellerer2004knapsack")) as oracle:
        if problem.fits(problem.reference_cost):
            return oracle.allocation((0,) * problem.steps, predicted_error=0.0, lower_bound=0.0)
        singles = oracle.singles()
        chosen, _, bound = cheapest_choice(problem, singles)
        oracle(chosen)
        choice = problem.choice(oracle.best(first=chosen))
        total = along(singles, choice)
        return oracle.allocation(choice, predicted_error=total, lower_bound=min(bound, total))
