"""Optima that are exactly zero: nothing is NaN, negative or divided by zero."""

from __future__ import annotations

import dataclasses
import io
import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.allocators.tasks import Floats, additive, names
from tmpdiff_bench.allocators import (
    ALLOCATORS,
    Allocation,
    AllocationProblem,
    gram,
    gram_front,
    knapsack,
    regret,
)
from tmpdiff_bench.allocators.solvers.quadratic import least_quadratic
from tmpdiff_bench.plan import PrecisionPlan

Whole = NDArray[np.int64]


def cancelling(vectors: Whole, costs: Floats, budget: float) -> AllocationProblem:
    """Deviations (L - 1, S, D) of whole numbers: plans whose deviations cancel err exactly zero."""
    lows, steps, dimensions = vectors.shape
    places = {level: i for i, level in enumerate(names(lows + 1))}
    rows = vectors.reshape(lows * steps, dimensions)

    def error(plan: PrecisionPlan) -> float:
        total = sum(vectors[places[v] - 1, s] for s, v in enumerate(plan) if places[v])
        return math.sqrt(int(np.square(total).sum()))

    return AllocationProblem(
        names(lows + 1), costs, budget, error, gram=(rows @ rows.T).astype(float)
    )


def least_error(problem: AllocationProblem) -> float:
    """By trying all plans."""
    steps, levels = problem.step_costs.shape
    choices = itertools.product(range(levels), repeat=steps)
    return min(problem.error(problem.plan(c)) for c in choices if problem.fits(problem.cost(c)))


@st.composite
def cancellations(draw: st.DrawFn) -> AllocationProblem:
    levels = draw(st.integers(2, 3))
    steps, dimensions = draw(st.integers(1, 8 if levels == 2 else 5)), draw(st.integers(1, 3))
    count = (levels - 1) * steps * dimensions
    numbers = draw(st.lists(st.integers(-2, 2), min_size=count, max_size=count))
    vectors = np.array(numbers).reshape(levels - 1, steps, dimensions)
    costs = np.tile([4.0, 2.0, 1.0][:levels], (steps, 1))
    return cancelling(vectors, costs, float(draw(st.integers(int(costs[:, -1].sum()), 4 * steps))))


def assert_sound(found: Allocation, best: float) -> None:
    """What a certificate says of an optimum that may be zero."""
    assert found.predicted_error is not None
    assert found.lower_bound is not None
    assert found.gap is not None
    for value in (found.error, found.predicted_error, found.lower_bound, found.gap):
        assert math.isfinite(value)
        assert value >= 0
    assert found.lower_bound <= best + 1e-6
    assert found.lower_bound <= found.predicted_error
    assert found.gap <= 1
    assert ("not proven" in str(found)) == (found.gap > 0)


@given(cancellations())
@settings(max_examples=100, deadline=None)
def test_forms_with_deviations_that_cancel(problem: AllocationProblem) -> None:
    best = least_error(problem)
    found = gram(problem)
    assert_sound(found, best)
    assert found.predicted_error == pytest.approx(best, abs=1e-6)
    assert found.gap == 0
    if best == 0:
        assert found.error == found.predicted_error == found.lower_bound == 0


def test_zero_is_zero_though_the_form_is_scaled() -> None:
    """Divided by their largest, 12, these entries are rounded."""
    vectors = np.zeros((2, 5, 3), dtype=np.int64)
    vectors[0, :4] = [[0, 0, 1], [2, -2, -2], [0, 0, 0], [0, 1, 0]]
    vectors[1, 2:] = [[0, 0, 1], [0, 0, 1], [-2, 1, 0]]
    found = gram(cancelling(vectors, np.tile([4.0, 2.0, 1.0], (5, 1)), 9.0))
    assert found.error == found.predicted_error == found.lower_bound == 0


@given(cancellations())
@settings(max_examples=60, deadline=None)
def test_bounds_alone_know_zero(problem: AllocationProblem) -> None:
    """Without trying all plans a zero that the search finds is still proven the least."""
    best = least_error(problem)
    form = problem.need_gram("this test")
    found = least_quadratic(form, problem.step_costs, problem.budget, max_nodes=50, max_plans=0)
    rounding = 1e-8 * float(np.abs(form).max(initial=1.0))
    assert found.bound <= best**2 + rounding
    assert found.value >= best**2 - rounding
    if found.value == 0:
        assert found.bound == 0


@given(cancellations())
@settings(max_examples=20, deadline=None)
def test_fronts_end_at_zero_once(problem: AllocationProblem) -> None:
    points = gram_front(problem)
    assert [p for p in points if p.predicted_error == 0] == [points[-1]]
    for point in points:
        assert 0 <= point.lower_bound <= point.predicted_error
        there = dataclasses.replace(problem, budget=point.cost)
        assert point.predicted_error == pytest.approx(least_error(there), abs=1e-6)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_steps_that_err_nothing(data: st.DataObject) -> None:
    """Knapsack, where enough steps go low for nothing."""
    steps = data.draw(st.integers(2, 8))
    free = data.draw(st.lists(st.booleans(), min_size=steps, max_size=steps))
    assume(any(free))
    singles = np.array([[0.0, 0.0 if f else 1.0] for f in free])
    problem = additive(np.tile([1.0, 0.5], (steps, 1)), steps - 0.5 * sum(free), singles)
    found = knapsack(problem)
    assert_sound(found, least_error(problem))
    assert found.error == found.predicted_error == found.lower_bound == found.gap == 0


@pytest.mark.parametrize("name", ALLOCATORS)
def test_every_allocator_where_no_plan_errs(name: str) -> None:
    vectors = np.zeros((2, 4, 1), dtype=np.int64)
    problem = cancelling(vectors, np.tile([1.0, 0.5, 0.25], (4, 1)), 2.0)
    found = ALLOCATORS[name](dataclasses.replace(problem, single_errors=np.zeros((4, 3))))
    assert found.error == 0
    assert found.gap in (0, None)
    assert "nan" not in str(found)
    found.plot().savefig(io.BytesIO())


@pytest.mark.parametrize(
    ("error", "optimum", "expected"),
    [
        (0.0, 0.0, 0.0),
        (3.0, 2.0, 0.5),
        (2.0, 2.0, 0.0),
        (1.0, 0.0, math.nan),
        (1.0, math.nan, math.nan),
        (math.nan, 1.0, math.nan),
    ],
)
def test_regret_is_a_share_or_unknown(error: float, optimum: float, expected: float) -> None:
    assert regret(error, optimum) == pytest.approx(expected, nan_ok=True)
