"""The best single level."""

from __future__ import annotations

import math

from tmpdiff_bench.allocators.base import Allocation, AllocationProblem, InfeasibleBudgetError
from tmpdiff_bench.allocators.oracle import Oracle, cited, declares


@declares(evaluations=lambda steps, levels: levels, may_refuse=True)
def uniform(problem: AllocationProblem) -> Allocation:
    """Measure every level that fits the budget at all steps alike, and take the best.

    What quantizing a whole model does, and the baseline of everything here.
    At most L evaluations.

    Raises:
        InfeasibleBudgetError: no single level is within the budget, though mixtures may be.
    """
    with Oracle(problem, "uniform", cited("tmpdiff_bench")) as oracle:
        totals = [math.fsum(column) for column in problem.step_costs.T]
        fitting = [level for level, cost in enumerate(totals) if problem.fits(cost)]
        if not fitting:
            raise InfeasibleBudgetError(
                f"no single level is within the budget of {problem.budget:.6g}: "
                f"the least that one costs is {min(totals):.6g}"
            )
        plans = [(level,) * problem.steps for level in fitting]
        return oracle.allocation(min(plans, key=oracle))
