"""`gram` on forms of low rank, where many plans have a prediction near zero."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

from tests.allocators.tasks import Floats, superposed
from tmpdiff_bench.allocators import AllocationProblem, bisection, gram, gram_front, knapsack
from tmpdiff_bench.allocators.solvers.quadratic import least_quadratic
from tmpdiff_bench.plan import PrecisionPlan

STEPS = 13


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(12))
def test_the_optimum_is_that_of_all_plans(rank: int, seed: int) -> None:
    """Every plan is tried: branches must not be cut by bounds that belong to their parents."""
    rng = np.random.default_rng([rank, seed])
    factors = rng.normal(size=(STEPS, rank)) * rng.lognormal(0, 0.5, (STEPS, 1))
    form = factors @ factors.T
    costs = np.column_stack([np.ones(STEPS), rng.uniform(0.2, 0.6, STEPS)])
    budget = 0.75 * STEPS
    choices = np.array(list(itertools.product((0, 1), repeat=STEPS)))
    total = np.where(choices == 1, costs[:, 1], costs[:, 0]).sum(axis=1)
    values = np.einsum("ps,st,pt->p", choices, form, choices)
    best = math.sqrt(max(values[total <= budget].min(), 0.0))
    problem = AllocationProblem(("bf16", "w4a4"), costs, budget, lambda plan: 0.0, gram=form)
    found = gram(problem)
    assert found.predicted_error == pytest.approx(best, abs=1e-6)
    assert found.lower_bound is not None
    assert found.lower_bound <= best + 1e-6


KINDS = (
    *("constant", "noisy", "equicorrelated", "blocks", "banded"),
    *("nearly rank one", "low rank", "negative", "recorded"),
)


def adversarial(kind: str, steps: int, levels: int, seed: int) -> Floats:
    """Forms that are hard to tell plans apart by: nearly equal errors, symmetry, cancellation."""
    rng, cells = np.random.default_rng(seed), steps * (levels - 1)
    at, one = np.arange(cells) % steps, np.eye(cells)
    noise = 1e-3 * rng.normal(size=(cells, cells))
    blocks = (at[:, None] // max(steps // 4, 1) == at // max(steps // 4, 1)).astype(float)
    vectors = rng.normal(size=(cells, 3 * cells))
    # as recordings are: early steps and low levels err more, a part of all deviations is shared
    recorded = (vectors + vectors.mean(axis=0)) * np.linspace(1.5, 0.5, steps)[at][:, None]
    return {
        "constant": one + 0.3,
        "noisy": one + 0.3 + noise + noise.T,
        "equicorrelated": 0.1 * one + 0.9,
        "blocks": 0.2 * one + 0.8 * blocks,
        "banded": np.exp(-np.abs(at[:, None] - at) / 3) + 1e-3 * one,
        "nearly rank one": np.outer(1 + 0.01 * vectors[0, :cells], 1 + 0.01 * vectors[0, :cells])
        + 1e-4 * one,
        "low rank": vectors[:, :3] @ vectors[:, :3].T,
        "negative": (vectors - 0.9 * vectors.mean(axis=0)) @ (vectors - vectors.mean(axis=0)).T,
        "recorded": recorded @ recorded.T / cells,
    }[kind]


def task(kind: str, steps: int, levels: int, seed: int, place: float = 0.5) -> AllocationProblem:
    """A problem with such a form; equal costs, or, for odd seeds, unequal ones."""
    form = adversarial(kind, steps, levels, seed)
    form = (form + form.T) / 2
    costs = np.tile([1.0, 0.5, 0.25][:levels], (steps, 1))
    if seed % 2:
        costs = costs * np.random.default_rng(seed).uniform(0.5, 2.0, (steps, 1))
    least, most = costs.min(axis=1).sum(), costs[:, 0].sum()
    return superposed(costs, float(least + place * (most - least)), form)


def all_values(problem: AllocationProblem) -> tuple[Floats, Floats]:
    """Cost and s'Gs of every plan."""
    steps, levels = problem.step_costs.shape
    choices = np.array(list(itertools.product(range(levels), repeat=steps)))
    cells = np.concatenate([choices == level for level in range(1, levels)], axis=1).astype(float)
    cost = problem.step_costs[np.arange(steps), choices].sum(axis=1)
    return cost, np.einsum("ps,ps->p", cells @ problem.need_gram("this test"), cells)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("steps", "levels"), [(14, 2), (8, 3)])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("plans", [0, 2**30])
def test_hard_forms_are_solved_or_bounded(
    kind: str, steps: int, levels: int, seed: int, plans: int
) -> None:
    """By bounds alone (`plans=0`) the bound holds; with all plans tried the optimum is found."""
    problem = task(kind, steps, levels, seed)
    cost, values = all_values(problem)
    best = float(values[cost <= problem.budget * (1 + 1e-9)].min())
    form = problem.need_gram("this test")
    found = least_quadratic(
        form, problem.step_costs, problem.budget, max_nodes=200, max_plans=plans
    )
    rounding = 1e-8 * float(np.abs(form).max())
    assert found.bound <= best + rounding
    assert found.value >= best - rounding
    if plans:
        assert found.value <= best + rounding
        assert found.bound >= best - rounding


@pytest.mark.parametrize("kind", KINDS)
def test_the_front_of_hard_forms_is_the_whole_front(kind: str) -> None:
    problem = task(kind, 9, 2, 0)
    cost, values = all_values(problem)
    points = gram_front(problem)
    for point in points:
        best = math.sqrt(max(float(values[cost <= point.cost * (1 + 1e-9)].min()), 0.0))
        assert point.predicted_error == pytest.approx(best, abs=1e-6)
        assert point.lower_bound <= best + 1e-6
    assert all(a.cost < b.cost for a, b in itertools.pairwise(points))
    assert all(a.predicted_error > b.predicted_error for a, b in itertools.pairwise(points))


def milp_optimum(problem: AllocationProblem) -> float:
    """The least s'Gs as HiGHS finds it, products of cells linearised (McCormick)."""
    steps, levels = problem.step_costs.shape
    form, cells = problem.need_gram("this test"), steps * (levels - 1)
    first, second = np.triu_indices(cells, 1)
    pairs, rows = np.arange(len(first)), []
    x, y = np.eye(cells), np.eye(len(first))
    zero = np.zeros((len(first), len(first)))
    rows.append(LinearConstraint(np.hstack([x[first], -y]), 0, np.inf))
    rows.append(LinearConstraint(np.hstack([x[second], -y]), 0, np.inf))
    rows.append(LinearConstraint(np.hstack([x[first] + x[second], zero - y]), -np.inf, 1))
    saved = (problem.step_costs[:, :1] - problem.step_costs[:, 1:]).T.ravel()
    need = problem.step_costs[:, 0].sum() - problem.budget
    rows.append(LinearConstraint(np.r_[saved, np.zeros(len(pairs))], need - 1e-9, np.inf))
    one = (np.arange(cells) % steps == np.arange(steps)[:, None]).astype(float)
    rows.append(LinearConstraint(np.hstack([one, np.zeros((steps, len(pairs)))]), 0, 1))
    result = milp(
        np.r_[np.diag(form), 2 * form[first, second]],
        integrality=np.r_[np.ones(cells), np.zeros(len(pairs))],
        bounds=Bounds(0, 1),
        constraints=rows,
        options={"mip_rel_gap": 0.0},
    )
    return float(result.fun)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "nearly rank one"])
def test_an_integer_program_finds_the_same(kind: str) -> None:
    problem = task(kind, 7, 2, 1, place=0.6)
    found = gram(problem)
    assert found.gap == 0
    assert found.predicted_error is not None
    assert found.predicted_error**2 == pytest.approx(milp_optimum(problem), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("kind", ["constant", "noisy", "blocks"])
def test_twenty_four_steps_of_nearly_equal_errors_end(kind: str) -> None:
    """Bounds can't tell these plans apart: without trying them all the search would not end."""
    problem = task(kind, 24, 2, 0)
    found = gram(problem)
    assert found.gap == 0
    if kind == "constant":  # k low steps give k + 0.3 k², whichever they are
        low = 24 - found.plan.count("a")
        assert low == 12
        assert found.predicted_error == pytest.approx(math.sqrt(low + 0.3 * low**2))


def test_a_search_that_is_cut_short_says_so() -> None:
    problem = task("banded", 40, 3, 0)
    found = gram(problem, max_nodes=0)
    assert found.gap is not None
    assert 0 < found.gap < 1
    assert "not proven the best" in str(found)


def test_a_single_plan_that_measured_less_is_returned() -> None:
    """Cheap steps: one low step is enough, and measured less than the plan that is predicted."""
    costs = np.array([[2.0, 1.0], [2.0, 1.0], [2.0, 1.0]])
    singles = np.array([[0.0, 3.0], [0.0, 2.0], [0.0, 1.0]])

    def error(plan: PrecisionPlan) -> float:
        return 9.0  # the recording was wrong of what is measured now

    problem = AllocationProblem(
        ("a", "b"), costs, 5.0, error, singles, np.diag(singles[:, 1] ** 2), {}
    )
    known = {PrecisionPlan.parse("a b a"): 2.0}
    loose = AllocationProblem(("a", "b"), costs, 5.0, error, None, np.diag([9.0, 4.0, 5.0]), known)
    assert knapsack(problem).error == gram(problem).error == 1.0
    assert gram(loose).plan == PrecisionPlan.parse("a b a")


@dataclass(frozen=True)
class FrozenError(Exception):
    """An exception that takes no attributes."""

    reason: str


def test_an_exception_that_takes_no_attributes_carries_what_was_paid() -> None:
    paid: list[PrecisionPlan] = []

    def oracle(plan: PrecisionPlan) -> float:
        if len(paid) == 3:
            raise FrozenError("out of memory")
        paid.append(plan)
        return float(sum(level == "w4a4" for level in plan))

    costs = np.tile([1.0, 0.25], (8, 1))
    with pytest.raises(FrozenError) as raised:
        bisection(AllocationProblem(("bf16", "w4a4"), costs, 4.0, oracle))
    partial = vars(raised.value)["partial"]
    assert [measurement.plan for measurement in partial] == paid
