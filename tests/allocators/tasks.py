"""Problems for the tests of allocators, and brute force as their independent reference."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from tmpdiff_bench.allocators import AllocationProblem
from tmpdiff_bench.plan import PrecisionPlan

Floats = NDArray[np.float64]


def names(levels: int) -> tuple[str, ...]:
    return tuple("abcd"[:levels])


def additive(costs: Floats, budget: float, singles: Floats) -> AllocationProblem:
    """Errors that add up, measured by summing them."""
    places = {level: i for i, level in enumerate(names(costs.shape[1]))}

    def error(plan: PrecisionPlan) -> float:
        return float(sum(singles[step, places[level]] for step, level in enumerate(plan)))

    return AllocationProblem(names(costs.shape[1]), costs, budget, error)


def superposed(costs: Floats, budget: float, gram: Floats) -> AllocationProblem:
    """Errors of deviations that superpose, single errors and inner products recorded."""
    steps, levels = costs.shape
    singles = np.zeros(costs.shape)
    singles[:, 1:] = np.sqrt(np.maximum(np.diag(gram), 0)).reshape(levels - 1, steps).T
    places = {level: i for i, level in enumerate(names(levels))}

    def error(plan: PrecisionPlan) -> float:
        mask = np.zeros(len(gram))
        for step, level in enumerate(plan):
            if places[level]:
                mask[(places[level] - 1) * steps + step] = 1
        return float(np.sqrt(max(float(mask @ gram @ mask), 0.0)))

    return AllocationProblem(names(levels), costs, budget, error, singles, gram)


def brute(
    problem: AllocationProblem, score: Callable[[tuple[int, ...]], float] | None = None
) -> float:
    """The least score (default: error) within the budget, over all plans."""
    steps, levels = problem.step_costs.shape
    score = score or (lambda choice: problem.error(problem.plan(choice)))
    return min(
        score(choice)
        for choice in itertools.product(range(levels), repeat=steps)
        if sum(problem.step_costs[s, c] for s, c in enumerate(choice))
        <= problem.budget * (1 + 1e-9)
    )


@st.composite
def tables(draw: st.DrawFn, *, equal_costs: bool) -> tuple[Floats, float, Floats]:
    """Costs (S, L), a budget that some plan is within, and single errors (S, L)."""
    levels = draw(st.integers(2, 3))
    steps = draw(st.integers(1, 7 if levels == 2 else 5))
    cents = st.lists(st.integers(1, 100), min_size=levels, max_size=levels)
    rows: list[list[int]] = [
        sorted(draw(cents), reverse=True) for _ in range(1 if equal_costs else steps)
    ]
    costs = np.broadcast_to(np.array(rows, dtype=float), (steps, levels)) / 100
    errors = st.lists(st.integers(0, 50), min_size=levels - 1, max_size=levels - 1)
    singles = np.zeros((steps, levels))
    singles[:, 1:] = [draw(errors) for _ in range(steps)]
    least, most = costs.min(axis=1).sum(), costs[:, 0].sum()
    budget = least + draw(st.floats(0, 1)) * (most - least)
    return costs, float(budget), singles
