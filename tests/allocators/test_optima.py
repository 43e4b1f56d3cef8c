"""Optima and bounds of bisection, knapsack, gram and gram_front against brute force."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.allocators.tasks import Floats, additive, brute, names, superposed, tables
from tmpdiff_bench.allocators import (
    AllocationProblem,
    InfeasibleBudgetError,
    bisection,
    exhaustive,
    gram,
    gram_front,
    knapsack,
)
from tmpdiff_bench.allocators.solvers.quadratic import least_quadratic
from tmpdiff_bench.allocators.solvers.relaxation import convex_form, pairs_of_steps
from tmpdiff_bench.errors import UsageError

few = settings(max_examples=25, deadline=None)


@given(tables(equal_costs=True), st.booleans())
@settings(max_examples=80, deadline=None)
def test_bisection_is_optimal_where_errors_add_up_and_costs_are_equal(
    table: tuple[Floats, float, Floats], verify: bool
) -> None:
    problem = additive(*table)
    found = bisection(problem, verify=verify)
    assert found.error == pytest.approx(exhaustive(problem).error, rel=1e-9, abs=1e-9)
    assert found.evaluations <= max(1, 2 * problem.steps * (len(problem.levels) - 1))


@given(tables(equal_costs=False), st.integers(1, 12), st.sampled_from([1.0, 2.0]), st.booleans())
@settings(max_examples=50, deadline=None)
def test_bisection_keeps_to_any_number_of_evaluations(
    table: tuple[Floats, float, Floats], evaluations: int, power: float, verify: bool
) -> None:
    problem = additive(*table)
    found = bisection(problem, max_evaluations=evaluations, power=power, verify=verify)
    assert found.evaluations <= evaluations
    assert problem.fits(found.cost)


def test_bisection_is_optimal_for_squares_that_add_up() -> None:
    rng = np.random.default_rng(3)
    variances = rng.gamma(0.5, size=9)
    problem = superposed(np.ones((9, 1)) * [1.0, 0.25], 5.2, np.diag(variances))
    best = brute(problem)
    assert bisection(problem, power=2).error == pytest.approx(best)


def test_few_evaluations_find_one_bad_region() -> None:
    """One interval of bad steps in 64: found by halving, long before every step is measured."""
    singles = np.zeros((64, 2))
    singles[:, 1] = 0.001
    singles[16:24, 1] = 1.0
    costs = np.ones((64, 1)) * [1.0, 0.5]
    problem = additive(costs, 64 - 0.5 * 56, singles)
    found = bisection(problem, max_evaluations=12)
    assert found.error == pytest.approx(0.056)


@given(tables(equal_costs=False), st.floats(0, 60))
@few
def test_tolerance_mode_stays_within_tolerance(
    table: tuple[Floats, float, Floats], tolerance: float
) -> None:
    costs, _, singles = table
    problem = additive(costs, float(costs[:, 0].sum()), singles)
    found = bisection(problem, tolerance=tolerance)
    assert found.error <= tolerance
    assert found.evaluations <= max(1, 2 * problem.steps * (len(problem.levels) - 1))
    if singles.sum(axis=0)[-1] <= tolerance and (costs[:, -1:] < costs[:, :-1]).all():
        assert found.plan == problem.plan(problem.cheapest)  # everything is within its share


def test_a_tolerance_that_the_budget_does_not_allow() -> None:
    problem = additive(np.ones((3, 1)) * [1.0, 0.5], 2.0, np.ones((3, 1)) * [0.0, 1.0])
    with pytest.raises(InfeasibleBudgetError, match="within the budget of 2") as raised:
        bisection(problem, tolerance=0.5)
    assert len(vars(raised.value)["partial"]) >= 1


@given(tables(equal_costs=False))
@settings(max_examples=40, deadline=None)
def test_knapsack_is_optimal_where_errors_add_up(table: tuple[Floats, float, Floats]) -> None:
    problem = additive(*table)
    found = knapsack(problem)
    best = brute(problem)
    assert found.error == pytest.approx(best, abs=1e-6)
    assert found.lower_bound is not None
    assert found.lower_bound <= best + 1e-6
    assert found.predicted_error == pytest.approx(found.error)


def grams(seed: int, cells: int, kind: str) -> Floats:
    """Symmetric forms: few or many dimensions, negative products, indefinite, diagonal, zero."""
    rng = np.random.default_rng(seed)
    size = rng.gamma(1.0, size=(cells, 1)) + 0.01
    vectors = rng.normal(size=(cells, {"low rank": 2}.get(kind, 3 * cells))) * size
    if kind == "negative":
        vectors -= 0.97 * vectors.mean(axis=0)
    form = vectors @ vectors.T
    if kind == "indefinite":
        form = rng.normal(size=(cells, cells))
        form = form + form.T
    if kind == "diagonal":
        form = np.diag(np.diag(form))
    return form * (kind != "zero")


KINDS = ["low rank", "full", "negative", "indefinite", "diagonal", "zero"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("nodes", "plans"), [(0, 0), (2, 0), (10_000, 0), (0, 2**30)])
@given(table=tables(equal_costs=False), seed=st.integers(0, 10**6))
@settings(max_examples=3, deadline=None)
def test_branch_and_bound_against_brute_force(
    kind: str, nodes: int, plans: int, table: tuple[Floats, float, Floats], seed: int
) -> None:
    costs, budget, _ = table
    form = grams(seed, costs.shape[0] * (costs.shape[1] - 1), kind)
    problem = superposed(costs, budget, form)
    found = least_quadratic(form, costs, budget, max_nodes=nodes, max_plans=plans)
    best = brute(problem, problem.predicted_square)
    rounding = 1e-8 * max(abs(best), float(np.abs(form).max()))
    assert problem.predicted_square(found.choice) == pytest.approx(found.value, abs=rounding)
    assert problem.fits(problem.cost(found.choice))
    assert found.bound <= best + rounding
    assert found.value >= best - rounding
    if nodes > 2 or plans:
        assert found.value <= best + rounding


@given(seed=st.integers(0, 10**6), steps=st.integers(1, 6), kind=st.sampled_from(KINDS[:5]))
@few
def test_the_reformulation_changes_no_value_and_is_convex(seed: int, steps: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    form = grams(seed, 2 * steps, kind)
    first, second = pairs_of_steps(steps, 2 * steps)
    x = rng.dirichlet(np.ones(3), steps).T[1:].ravel()
    convex = convex_form(form, steps, x - x * x + 0.01, x[first] * x[second])
    assert np.linalg.eigvalsh(convex.matrix)[0] >= -1e-12 * np.abs(convex.matrix).max()
    level = rng.integers(0, 3, steps)
    x = np.r_[level == 1, level == 2].astype(float)
    value = x @ convex.matrix @ x + convex.linear @ x
    assert value == pytest.approx(x @ form @ x, abs=1e-8 * np.abs(convex.matrix).max())


def test_thirty_steps_and_two_levels_are_exact() -> None:
    form = grams(1, 30, "full")
    found = gram(superposed(np.ones((30, 1)) * [1.0, 0.4], 19.0, form))
    assert found.lower_bound == found.predicted_error
    assert found.gap == 0


def test_fifty_steps_and_three_levels_have_a_certified_gap() -> None:
    form = grams(2, 100, "full")
    found = gram(superposed(np.ones((50, 1)) * [1.0, 0.5, 0.25], 30.0, form), max_nodes=100)
    assert found.lower_bound is not None
    assert found.predicted_error is not None
    assert found.gap is not None
    assert 0 < found.lower_bound <= found.predicted_error
    assert found.gap < 0.2


@given(tables(equal_costs=True), st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_the_front_is_the_whole_front(table: tuple[Floats, float, Floats], seed: int) -> None:
    costs, _, _ = table
    form = grams(seed, costs.shape[0] * (costs.shape[1] - 1), "full")
    problem = superposed(costs, float(costs[:, 0].sum()), form)
    points = gram_front(problem, points=300)
    assert all(a.cost < b.cost for a, b in itertools.pairwise(points))
    assert all(a.predicted_error > b.predicted_error for a, b in itertools.pairwise(points))
    assert points[-1].predicted_error == pytest.approx(0, abs=1e-9)
    for point in points:
        there = dataclasses.replace(problem, budget=point.cost)
        best = math.sqrt(max(brute(there, there.predicted_square), 0.0))
        assert point.predicted_error == pytest.approx(best, abs=1e-7)
        assert point.lower_bound <= best + 1e-7


def test_what_is_missing_is_named() -> None:
    problem = AllocationProblem(names(2), np.ones((3, 1)) * [1.0, 0.5], 2.0, lambda plan: 1.0)
    for allocate in (gram, gram_front):
        with pytest.raises(UsageError, match="needs the problem's gram"):
            allocate(problem)
