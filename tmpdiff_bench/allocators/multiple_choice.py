"""The multiple-choice knapsack: one level per step, least sum of errors within a budget."""

from __future__ import annotations

import math

import numpy as np

from tmpdiff_bench.allocators.base import COST_TOLERANCE, AllocationProblem, Choice, Floats

# HiGHS compares to absolute tolerances of 1e-6 to 1e-7; with budget and errors of this size they
# are far below the library's own
_SCALE = 1e5
_TIGHTER = 1e-9


def cheapest_choice(problem: AllocationProblem, errors: Floats) -> tuple[Choice, float]:
    """Minimise Σ errors[s, l] (S, L) within the problem's budget; returns plan and minimum.

    Infinite errors are levels that a step may not take; a plan without them must fit.

    Exact, by branch and bound (HiGHS, through `scipy.optimize.milp`), to some 1e-9 of the largest
    error. Where HiGHS' own tolerance let a plan slip over the budget, the budget is tightened until
    it does not: plans whose cost is within that of the budget may then be passed over.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    steps, levels = errors.shape
    allowed = np.isfinite(errors)
    size = float(errors.max(where=allowed, initial=0.0)) or 1.0
    weights = np.where(allowed, errors, 0.0) / size * _SCALE
    cost_allowed = np.where(allowed, problem.step_costs, np.inf)
    budget = problem.budget + COST_TOLERANCE * abs(problem.budget)
    unit = (budget or float(problem.step_costs.max()) or 1.0) / _SCALE
    one_each = csr_array(
        (np.ones(steps * levels), (np.repeat(np.arange(steps), levels), np.arange(steps * levels)))
    )
    tightening = 0.0
    while True:
        row = csr_array((problem.step_costs / unit).reshape(1, -1))
        result = milp(
            weights.ravel(),
            integrality=np.ones(steps * levels),
            bounds=Bounds(0, allowed.ravel().astype(float)),
            constraints=[
                LinearConstraint(one_each, 1, 1),
                LinearConstraint(row, -np.inf, budget / unit * (1 - tightening)),
            ],
            options={"mip_rel_gap": 0.0},
        )
        if result.x is None:  # tightened away: only the cheapest plan is certain to fit
            choice = tuple(cost_allowed.argmin(axis=1).tolist())
        else:
            choice = tuple(result.x.reshape(steps, levels).argmax(axis=1).tolist())
        if problem.fits(problem.cost(choice)):
            total = math.fsum(errors[step, level] for step, level in enumerate(choice))
            return choice, total
        tightening = max(_TIGHTER, 8 * tightening)
