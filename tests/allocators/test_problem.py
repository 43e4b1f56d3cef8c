"""Problems refuse what they cannot use; results keep their account and fit a screen."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.allocators.tasks import additive, names
from tmpdiff_bench.allocators import (
    ALLOCATORS,
    AllocationProblem,
    InfeasibleBudgetError,
    Measurement,
    MeasurementError,
    bisection,
    exhaustive,
    gram,
    gram_front,
    knapsack,
    random_search,
    uniform,
)
from tmpdiff_bench.allocators.solvers.moves import ladders, random_plan
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.plan import PrecisionPlan, nodes_per_step

COSTS = np.ones((4, 1)) * [1.0, 0.5]
SINGLES = np.ones((4, 1)) * [0.0, 1.0]

MANY: Any = "many"  # what a caller without types may write


def problem(**changes: Any) -> AllocationProblem:
    values: dict[str, Any] = {
        "levels": ("a", "b"),
        "step_costs": COSTS,
        "budget": 3.0,
        "error": lambda plan: float(plan.count("b")),
    }
    return AllocationProblem(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": ()}, "one or more different names"),
        ({"levels": ("a", "a")}, "different names"),
        ({"levels": ("a", "b c")}, "bad level name"),
        ({"levels": ("a", "b", "c")}, r"step_costs has shape \(4, 2\), expected \(S, L\)"),
        ({"step_costs": COSTS * -1}, "step_costs must be finite and not negative"),
        ({"step_costs": COSTS * math.nan}, "step_costs must be finite"),
        ({"step_costs": "dear"}, "step_costs must be numbers"),
        ({"step_costs": np.ones((0, 2))}, "1 to 10000 steps"),
        ({"step_costs": np.ones(2)}, "shape"),
        ({"budget": math.nan}, "budget is nan"),
        ({"budget": math.inf}, "budget is inf"),
        ({"budget": None}, "budget is None"),
        ({"single_errors": SINGLES + 1}, "column 0"),
        ({"single_errors": SINGLES[:3]}, r"single_errors has shape \(3, 2\)"),
        ({"single_errors": -SINGLES}, "single_errors must be finite and not negative"),
        ({"gram": np.eye(3)}, r"gram has shape \(3, 3\)"),
        ({"gram": np.triu(np.ones((4, 4)))}, "symmetric"),
        ({"gram": np.full((4, 4), math.nan)}, "gram must be finite"),
        ({"nfe_per_step": 0}, "nfe_per_step"),
        ({"nfe_per_step": [1, 2]}, "nfe_per_step has 2 numbers for 4 steps"),
        ({"nfe_per_step": True}, "nfe_per_step is True: a whole number"),
        ({"nfe_per_step": 1.5}, "nfe_per_step is 1.5"),
        ({"nfe_per_step": [1, 1, False, 1]}, "nfe_per_step is False"),
        ({"nfe_per_step": None}, "nfe_per_step is None"),
        ({"nfe_per_step": "1111"}, "nfe_per_step"),
        ({"levels": "ab"}, "levels is 'ab': a sequence of names"),
        ({"levels": None}, "levels is None: a sequence of names"),
        ({"error": 3.0}, "error is 3.0: a function"),
        ({"error": None}, "error is None: a function"),
        ({"budget": "3"}, "budget is '3': a finite number"),
        ({"budget": True}, "budget is True"),
        ({"known": [1]}, "known is .*a mapping"),
        ({"known": {"b b b b": 1.0}}, "known: 'b b b b' is no PrecisionPlan"),
        ({"known": {PrecisionPlan.uniform("b", 3): 1.0}}, "known: plan b.3 has 3 steps"),
        ({"known": {PrecisionPlan.uniform("c", 4): 1.0}}, "known: unknown level 'c'"),
        ({"known": {PrecisionPlan.uniform("b", 4): math.nan}}, "known: the error of plan .* nan"),
        ({"known": {PrecisionPlan.uniform("b", 4): "1"}}, "known: the error of plan .* '1'"),
        ({"step_costs": COSTS * 1e101}, "step_costs goes up to 1e.101: choose a unit"),
        ({"single_errors": SINGLES * 1e200}, "single_errors goes up to 1e.200: choose a unit"),
        ({"gram": np.eye(4) * 1e250}, "gram goes up to 1e.250"),
    ],
)
def test_values_that_cannot_be_used(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        problem(**changes)


@pytest.mark.parametrize("nfe", [np.int64(2), [2, 2, 2, 2], np.array([2, 2, 2, 2])])
def test_whole_numbers_of_any_kind_count_network_evaluations(nfe: Any) -> None:
    assert problem(nfe_per_step=nfe).nfe_per_step == (2, 2, 2, 2)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ((0, 1), r"\(0, 1\) is no choice of levels: 4 indices from 0 to 1"),
        ((0, 1, 1, 0, 0), "no choice of levels"),
        ((0, 1, 2, 0), "no choice of levels"),
        ((0, -1, 0, 0), "no choice of levels"),
        ((0, 0.5, 0, 0), "no choice of levels"),
        ("abab", "no choice of levels"),
        (3, "3 is no choice of levels"),
    ],
)
def test_choices_that_are_none(choice: Any, message: str) -> None:
    task = problem(gram=np.eye(4))
    for use in (task.plan, task.cost, task.predicted_square):
        with pytest.raises(UsageError, match=message):
            use(choice)


def test_what_is_no_measurement_and_no_plan() -> None:
    texts: Any = ["b", "a a a a"]
    with pytest.raises(UsageError, match="'b' is no Measurement"):
        problem().knowing(texts)
    with pytest.raises(UsageError, match="'a a a a' is no PrecisionPlan"):
        problem().choice(texts[1])


def test_an_impossible_budget_names_the_least_cost() -> None:
    with pytest.raises(InfeasibleBudgetError, match=r"least possible cost is 2, a speedup of 2"):
        problem(budget=1.9)


@pytest.mark.parametrize("speedup", [0, -1, math.nan, math.inf, "fast"])
def test_speedups_that_are_none(speedup: Any) -> None:
    with pytest.raises(UsageError, match="speedup"):
        AllocationProblem.for_speedup(
            speedup, levels=("a", "b"), step_costs=COSTS, error=lambda plan: 0.0
        )


def test_budgets_forgive_rounding() -> None:
    costs = np.full((10, 2), [0.1, 0.05])
    tenth = problem(step_costs=costs, budget=sum([0.1] * 10) * 0.5)
    assert not sum([0.05] * 10) > tenth.budget + 1e-12
    assert uniform(tenth).plan == PrecisionPlan.uniform("b", 10)
    exact = AllocationProblem.for_speedup(
        1.0, levels=("a", "b"), step_costs=costs, error=lambda plan: float(plan.count("b"))
    )
    for allocate in ALLOCATORS.values():
        if allocate is not gram:
            assert allocate(exact).plan == PrecisionPlan.uniform("a", 10)


def test_plans_of_another_length_and_unknown_levels() -> None:
    with pytest.raises(UsageError, match="has 3 steps, the problem has 4"):
        problem().cost(PrecisionPlan.uniform("a", 3))
    with pytest.raises(UsageError, match="unknown level 'bb': did you mean 'b'"):
        problem().cost(PrecisionPlan.uniform("bb", 4))


def test_what_is_given_is_copied_and_cannot_change() -> None:
    costs = COSTS.copy()
    task = problem(step_costs=costs)
    costs[:] = 0
    assert task.reference_cost == 4
    with pytest.raises(ValueError, match="read-only"):
        task.step_costs[0, 0] = 5


@pytest.mark.parametrize("allocate", [f for f in ALLOCATORS.values() if f is not gram])
@pytest.mark.parametrize(
    "task",
    [
        problem(levels=("a",), step_costs=np.ones((3, 1)), budget=3.0),
        problem(step_costs=np.ones((1, 2)), budget=1.0),
        problem(step_costs=np.zeros((3, 2)), budget=0.0),
        problem(step_costs=np.ones((3, 2)) * [1.0, 1.0], budget=3.0),
        problem(step_costs=np.array([[1.0, 2.0], [2.0, 1.0]]), budget=3.0),
        problem(step_costs=COSTS, budget=2.0),
    ],
    ids=["one level", "one step", "zero costs", "equal costs", "dearer low level", "cheapest only"],
)
def test_odd_but_possible_problems(
    allocate: Callable[[AllocationProblem], Any], task: AllocationProblem
) -> None:
    found = allocate(task)
    assert task.fits(found.cost)
    assert found.error == exhaustive(task).error


def test_zero_inner_products_and_no_cells() -> None:
    assert gram(problem(gram=np.zeros((4, 4)))).predicted_error == 0
    alone = problem(levels=("a",), step_costs=np.ones((3, 1)), gram=np.zeros((0, 0)))
    assert gram(alone).plan == PrecisionPlan.uniform("a", 3)
    assert alone.predicted_square((0, 0, 0)) == 0


def test_the_account() -> None:
    """Knapsack reads single plans and measures its own; the prefixes are those of all of them."""
    asked = []

    def error(plan: PrecisionPlan) -> float:
        asked.append(plan)
        return 1.5

    found = knapsack(problem(error=error, single_errors=SINGLES, nfe_per_step=2))
    singles = [PrecisionPlan.single("a", "b", step, 4) for step in range(4)]
    assert asked == [found.plan]
    assert found.evaluations == 5
    assert [m.plan for m in found.trace] == [*singles, found.plan]
    assert [m.read for m in found.trace] == [True] * 4 + [False]
    plans = [PrecisionPlan.uniform("a", 4), *singles, found.plan]
    assert found.nfe == 2 * sum(nodes_per_step(plans))
    assert found.seconds >= found.oracle_seconds >= 0
    assert found.best_so_far() == [math.inf] * 4 + [1.5]  # a single plan is over the budget


def test_network_evaluations_may_differ_by_step() -> None:
    found = uniform(problem(nfe_per_step=[1, 1, 1, 5], budget=2.0))
    assert found.nfe == 2 * 8  # the reference and one plan, which share nothing


@pytest.mark.parametrize(
    "bad",
    ["1", True, np.bool_(True), b"1", None, 1j, [1.0], 10**400, 1e101],
    ids=lambda bad: str(type(bad)),
)
def test_errors_that_are_none_keep_what_was_paid(bad: Any) -> None:
    values = iter([1.0, 2.0, bad])
    with pytest.raises(MeasurementError, match="errors are numbers from 0") as raised:
        random_search(problem(error=lambda plan: next(values)))
    assert repr(bad) in str(raised.value)
    assert [m.error for m in raised.value.partial] == [1.0, 2.0]


@pytest.mark.parametrize("good", [1, np.float32(1), np.float64(1), np.int64(1), Fraction(1)])
def test_numbers_of_any_kind_are_errors(good: Any) -> None:
    assert uniform(problem(error=lambda plan: good)).error == 1


def test_an_error_function_that_allocates_itself() -> None:
    """The account of a call inside of `error` is of another problem: not that of this one."""

    def error(plan: PrecisionPlan) -> float:
        if plan.count("b") == 2:
            uniform(problem(error=lambda inner: math.nan))
        return 1.0

    with pytest.raises(MeasurementError, match="is nan") as raised:
        bisection(problem(error=error))
    assert [m.plan for m in raised.value.partial] == [PrecisionPlan.uniform("b", 4)]


def test_powers_that_overflow_are_named() -> None:
    task = problem(error=lambda plan: 1e90)
    with pytest.raises(UsageError, match=r"an error of 1e\+90 to the power 4 is too large"):
        bisection(task, power=4)


def test_an_exception_keeps_its_type_and_gets_a_note() -> None:
    def error(plan: PrecisionPlan) -> float:
        raise KeyboardInterrupt

    known = [Measurement(PrecisionPlan.uniform("b", 4), 4.0)]
    with pytest.raises(KeyboardInterrupt) as raised:
        bisection(problem(error=error).knowing(known))
    read = Measurement(known[0].plan, 4.0, read=True)
    assert vars(raised.value)["partial"] == (read,)
    assert "1 evaluations" in raised.value.__notes__[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda p: exhaustive(additive(np.ones((17, 2)), 17, np.zeros((17, 2)))),
            "= 131,072 plans",
        ),
        (
            lambda p: exhaustive(additive(np.ones((9999, 3)), 9999, np.zeros((9999, 3)))),
            r"some 10\^4771 plans",
        ),
        (lambda p: bisection(p, max_evaluations=0), "max_evaluations is 0"),
        (lambda p: bisection(p, power=0), "power"),
        (lambda p: bisection(p, tolerance=-1), "tolerance"),
        (lambda p: random_search(p, max_evaluations=-3), "max_evaluations is -3"),
        (lambda p: ALLOCATORS["beam"](p, width=0), "width is 0: a whole"),
        (lambda p: ALLOCATORS["evolutionary"](p, population=1), "population is 1: a whole"),
        (
            lambda p: ALLOCATORS["evolutionary"](p, mutation=2),
            "mutation is 2: a finite number from 0 to 1",
        ),
        (lambda p: ALLOCATORS["first_last"](p, by="luck"), "by='luck'"),
        (lambda p: gram(p, max_nodes=-1), "max_nodes"),
        *[
            (functools.partial(ALLOCATORS[name], **{option: bad}), f"{option} is {bad!r}")
            for name, option, values in (
                ("random_search", "rng", (-1, None, "x", True, 1.0)),
                ("evolutionary", "rng", (-1, None, "x", True, 1.0)),
                ("random_search", "max_evaluations", (2.5, "x", math.nan, True)),
                ("evolutionary", "max_evaluations", (2.5, "x", math.nan, True)),
                ("bisection", "max_evaluations", (2.5, "x", math.nan, True)),
                ("bisection", "tolerance", ("x", True, math.nan)),
                ("bisection", "power", ("x", True, math.inf)),
                ("beam", "width", (1.5, "x", True, None)),
                ("evolutionary", "population", (2.5, "x", True)),
                ("evolutionary", "mutation", ("x", True, math.nan)),
                ("gram", "max_nodes", (2.5, "x", True)),
            )
            for bad in values
        ],
        (lambda p: gram_front(p, points=1), "points is 1"),
        (lambda p: gram_front(p, points=MANY), "points is 'many'"),
        (lambda p: gram_front(p, max_nodes=-1), "max_nodes is -1"),
    ],
)
def test_options_that_cannot_be_used(
    call: Callable[[AllocationProblem], object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        call(problem(gram=np.eye(4)))


def test_random_generators_and_seeds_are_the_same() -> None:
    costs = np.ones((9, 1)) * [1.0, 0.5, 0.25]
    task = AllocationProblem(names(3), costs, 5.0, lambda plan: float(hash(plan.levels) % 97))
    for name in ("random_search", "evolutionary"):
        zero = [m.plan for m in ALLOCATORS[name](task, rng=0).trace]
        assert [m.plan for m in ALLOCATORS[name](task).trace] == zero
        assert [m.plan for m in ALLOCATORS[name](task, rng=np.random.default_rng(0)).trace] == zero
        assert [m.plan for m in ALLOCATORS[name](task, rng=1).trace] != zero


@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 4), st.floats(0, 1))
def test_random_plans_fit_and_waste_nothing(
    seed: int, steps: int, levels: int, place: float
) -> None:
    rng = np.random.default_rng(seed)
    costs = rng.random((steps, levels))
    least, most = costs.min(axis=1).sum(), max(costs[:, 0].sum(), costs.min(axis=1).sum())
    task = AllocationProblem(
        names(levels), costs, least + place * (most - least) + 1e-12, lambda plan: 0.0
    )
    every = ladders(task)
    choice = random_plan(task, every, rng)
    cost = task.cost(choice)
    assert task.fits(cost)
    for step, (level, rungs) in enumerate(zip(choice, every, strict=True)):
        for dearer in rungs[: rungs.index(level)]:
            assert not task.fits(cost - costs[step, level] + costs[step, dearer] + 1e-9)


def test_citations_are_bibtex() -> None:
    task = problem(single_errors=SINGLES, gram=np.eye(4))
    for allocate in ALLOCATORS.values():
        citation = allocate(task).citation
        assert citation.startswith("@")
        assert citation.count("{") == citation.count("}") > 1
    assert "2603.14062" in bisection(task).citation
