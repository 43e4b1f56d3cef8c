"""The first and last steps high, all others low."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from tmpdiff_bench.allocators.base import (
    COST_TOLERANCE,
    Allocation,
    AllocationProblem,
    Choice,
    InfeasibleBudgetError,
    along,
)
from tmpdiff_bench.allocators.oracle import Oracle, cited, declares
from tmpdiff_bench.errors import UsageError


@declares(lambda steps, levels: max(1, (steps + 1) * (levels - 1)), may_refuse=True)
def first_last(
    problem: AllocationProblem, *, by: Literal["auto", "single_errors", "search"] = "auto"
) -> Allocation:
    """Run n first and m last steps at the reference, and all between at one low level.

    What inference engines ship as a step policy. For every low level and every n, m is the largest
    number for which the plan is within the budget. Among these candidates, `by="single_errors"`
    takes the one with the least sum of single errors (no evaluation beyond them and its own), and
    `by="search"` measures all of them; "auto" searches only where there are no single errors.

    At most (S+1)(L-1) evaluations, or S(L-1) + 1 with single errors.

    Raises:
        InfeasibleBudgetError: even all steps at one low level are over the budget.
    """
    if by not in ("auto", "single_errors", "search"):
        raise UsageError(f"by={by!r}: 'auto', 'single_errors' or 'search'")
    with Oracle(problem, "first_last", cited("tmpdiff_bench")) as oracle:
        plans = _candidates(problem)
        if by == "search" or (by == "auto" and problem.single_errors is None):
            return oracle.allocation(min(plans, key=oracle))
        singles = oracle.singles()
        best = min(plans, key=lambda choice: along(singles, choice))
        return oracle.allocation(best, predicted_error=along(singles, best))


def _candidates(problem: AllocationProblem) -> list[Choice]:
    """For each level and number of first steps, the plan with most last steps that fits."""
    steps, found = problem.steps, dict[Choice, None]()
    most = problem.budget + 2 * COST_TOLERANCE * abs(problem.budget)
    if problem.fits(problem.reference_cost):
        found[(0,) * steps] = None
    high = np.r_[0.0, np.cumsum(problem.step_costs[:, 0])]
    for level in range(1, len(problem.levels)):
        below = high - np.r_[0.0, np.cumsum(problem.step_costs[:, level])]  # saved before a step
        for first in range(steps):
            saved = below[:first:-1] - below[first]  # by number of last steps
            for last in np.flatnonzero(high[-1] - saved <= most)[::-1].tolist():
                low = steps - first - last
                choice = (0,) * first + (level,) * low + (0,) * last
                if problem.within(choice):  # the sums above are rounded
                    found[choice] = None
                    break
    if not found:
        least = min(map(math.fsum, problem.step_costs.T))
        raise InfeasibleBudgetError(
            f"no first-last plan is within the budget of {problem.budget:.6g}: all steps at one "
            f"level cost {least:.6g} or more"
        )
    return list(found)
