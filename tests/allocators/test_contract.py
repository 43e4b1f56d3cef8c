"""Every allocator keeps the contract, and the contract catches those that do not."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tmpdiff_bench.allocators import (
    ALLOCATORS,
    Allocation,
    AllocationProblem,
    Allocator,
    InfeasibleBudgetError,
    MeasurementError,
    Oracle,
    beam,
    declares,
    evaluation_bound,
    exhaustive,
    get_allocator,
    gram,
    greedy_backward,
    greedy_forward,
    uniform,
)
from tmpdiff_bench.allocators.contract import ContractError, OracleFailureError, check
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.plan import PrecisionPlan

EXACT = {"exhaustive", "knapsack", "gram"}


@pytest.mark.parametrize("name", ALLOCATORS)
def test_the_contract_is_kept(name: str) -> None:
    assert check(ALLOCATORS[name], problems=15, exact=name in EXACT) >= 5


@pytest.mark.parametrize("name", ALLOCATORS)
def test_each_is_one_file_that_says_what_it_does(name: str) -> None:
    module = importlib.import_module(f"tmpdiff_bench.allocators.{name}")
    allocate = getattr(module, name)
    assert allocate is get_allocator(name)
    assert "evaluations" in (inspect.getdoc(allocate) or "")
    assert evaluation_bound(allocate, 8, 3) is not None
    _, *options = inspect.signature(allocate).parameters.values()
    assert all(
        o.kind is inspect.Parameter.KEYWORD_ONLY and o.default is not inspect.Parameter.empty
        for o in options
    )


def test_an_unknown_allocator_is_told_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'bisection'"):
        get_allocator("bisect")


def changed(**changes: Any) -> Allocator:
    """An allocator whose result is right but for some fields, given as functions of it."""

    def allocate(problem: AllocationProblem) -> Allocation:
        found = greedy_forward(problem)
        return dataclasses.replace(found, **{name: f(found) for name, f in changes.items()})

    return allocate


def over_budget(problem: AllocationProblem) -> Allocation:
    found = greedy_forward(problem)
    plan = problem.plan((0,) * problem.steps)
    return dataclasses.replace(found, plan=plan, cost=problem.reference_cost)


def of_other_levels(problem: AllocationProblem) -> Allocation:
    plan = PrecisionPlan.uniform("elsewhere", problem.steps)
    return dataclasses.replace(greedy_forward(problem), plan=plan)


def without_an_account(problem: AllocationProblem) -> Allocation:
    problem.error(problem.plan(problem.cheapest))
    with Oracle(problem, "twice", "") as oracle:
        return oracle.allocation(problem.cheapest)


def secretive(problem: AllocationProblem) -> Allocation:
    problem.error(problem.plan([len(problem.levels) - 1] * problem.steps))
    return greedy_backward(dataclasses.replace(problem, error=functools.cache(problem.error)))


CALLS = itertools.count(1)


def of_another_mind_each_time(problem: AllocationProblem) -> Allocation:
    call = next(CALLS)
    with Oracle(problem, "fickle", "") as oracle:
        plans = [problem.cheapest, (0,) * problem.steps]
        plan = plans[call // 2 % 2]
        return oracle.allocation(plan if problem.fits(problem.cost(plan)) else plans[0])


def by_absolute_size(problem: AllocationProblem) -> Allocation:
    with Oracle(problem, "absolute", "") as oracle:
        error = oracle(problem.cheapest)
        if error > 1.5 and problem.fits(problem.reference_cost):
            return oracle.allocation((0,) * problem.steps)
        return oracle.allocation(problem.cheapest)


def swallowing(problem: AllocationProblem) -> Allocation:
    def error(plan: PrecisionPlan) -> float:
        try:
            return problem.error(plan)
        except Exception:
            return 0.0

    return greedy_forward(dataclasses.replace(problem, error=error))


def credulous(problem: AllocationProblem) -> Allocation:
    def error(plan: PrecisionPlan) -> float:
        value = problem.error(plan)
        return value if 0 <= value < math.inf else 1.0

    return greedy_forward(dataclasses.replace(problem, error=error))


def forgetful(problem: AllocationProblem) -> Allocation:
    """Loses what was paid for when the oracle fails."""
    try:
        return greedy_forward(problem)
    except MeasurementError:
        raise
    except Exception as error:
        raise type(error) from None


def measuring_again(problem: AllocationProblem) -> Allocation:
    """Takes no notice of what is known."""
    return greedy_forward(dataclasses.replace(problem, known={}))


@declares(lambda steps, levels: 1)
def spendthrift(problem: AllocationProblem) -> Allocation:
    return exhaustive(problem)


def picky(problem: AllocationProblem) -> Allocation:
    """Refuses budgets, and says nothing of it."""
    if problem.steps > 3:
        raise InfeasibleBudgetError("too many steps")
    return greedy_forward(problem)


def undeclared(problem: AllocationProblem) -> Allocation:
    """Needs the inner products, and says nothing of it."""
    return gram(problem)


def with_excuses(problem: AllocationProblem) -> Allocation:
    if problem.steps > 3:
        raise UsageError("this problem has no gram, no single_errors, and too many steps")
    return greedy_forward(problem)


@declares(needs=("gram",))
def needing_nothing(problem: AllocationProblem) -> Allocation:
    return greedy_forward(problem)


@declares(needs=("gram",), predicts="gram")
def sure_of_its_form(problem: AllocationProblem) -> Allocation:
    """Takes its own prediction for the least, which it is not."""
    problem.need_gram("it")
    found = greedy_forward(problem)
    value = math.sqrt(max(problem.predicted_square(problem.choice(found.plan)), 0.0))
    return dataclasses.replace(found, predicted_error=value, lower_bound=value)


@declares(predicts="sum")
def predicting_something_else(problem: AllocationProblem) -> Allocation:
    return dataclasses.replace(greedy_forward(problem), predicted_error=12.5)


def of_one_unit(problem: AllocationProblem) -> Allocation:
    return dataclasses.replace(greedy_forward(problem), predicted_error=1.0)


def reading_nothing_there(problem: AllocationProblem) -> Allocation:
    found = greedy_forward(problem)
    trace = tuple(dataclasses.replace(m, error=m.error + 1) for m in found.trace)
    return dataclasses.replace(found, trace=trace)


def twice_in_the_trace(problem: AllocationProblem) -> Allocation:
    found = greedy_forward(problem)
    return dataclasses.replace(found, trace=found.trace * 2)


def too_dear(problem: AllocationProblem) -> Allocation:
    with Oracle(problem, "dear", "") as oracle:
        return oracle.allocation((0,) * problem.steps)


def changing(name: str) -> Allocator:
    """Writes into a part of the problem, past what freezes it."""

    def allocate(problem: AllocationProblem) -> Allocation:
        found = greedy_forward(problem)
        array = getattr(problem, name)
        if array is not None:
            array.flags.writeable = True
            array[:] = 0
        return found

    return allocate


def noting_what_is_known(problem: AllocationProblem) -> Allocation:
    found = greedy_forward(problem)
    known: Any = problem.known
    known.update({m.plan: m.error for m in found.trace})
    return found


def frozen_out(problem: AllocationProblem) -> Allocation:
    problem.step_costs[:] = 0
    return greedy_forward(problem)


ONE_CALL = iter([True])


def of_one_call(problem: AllocationProblem) -> Allocation:
    next(ONE_CALL)
    return greedy_forward(problem)


def replacing(kinds: tuple[type[Exception], ...]) -> Allocator:
    """Raises its own exception for what the oracle or its checks raised."""

    def allocate(problem: AllocationProblem) -> Allocation:
        try:
            return greedy_forward(problem)
        except kinds as error:
            raise RuntimeError("it failed") from error

    return allocate


def with_a_part_of_it(problem: AllocationProblem) -> Allocation:
    try:
        return greedy_forward(problem)
    except OracleFailureError as error:
        vars(error)["partial"] = vars(error)["partial"][1:]
        raise


def no_allocation(problem: AllocationProblem) -> Any:
    return problem.plan(problem.cheapest)


def peeking(sizes: Callable[[AllocationProblem], Any]) -> Allocator:
    """Lowers steps in the order of what was recorded, and does not count that."""

    @declares(needs=("single_errors", "gram"))
    def allocator(problem: AllocationProblem) -> Allocation:
        problem.need_gram("peeking")
        with Oracle(problem, "peeking", "") as oracle:
            choice = [0] * problem.steps
            for step in np.argsort(sizes(problem), kind="stable"):
                if problem.fits(problem.cost(choice)):
                    break
                choice[step] = problem.cheapest[step]
            return oracle.allocation(choice)

    return allocator


def of_singles(problem: AllocationProblem) -> Any:
    assert problem.single_errors is not None
    return problem.single_errors.sum(axis=1)


def of_products(problem: AllocationProblem) -> Any:
    diagonal = np.diag(problem.need_gram("peeking"))
    return diagonal.reshape(-1, problem.steps).sum(axis=0)


BROKEN: list[tuple[Any, str]] = [
    (no_allocation, "returned no Allocation"),
    (over_budget, "plan is over budget: it costs"),
    (too_dear, "AssertionError: dear chose plan level0.*over budget: it costs .* of at most"),
    (changing("step_costs"), "changed the problem's step_costs"),
    (changing("single_errors"), "changed the problem's single_errors"),
    (changing("gram"), "changed the problem's gram"),
    (noting_what_is_known, "changed the problem's known"),
    (frozen_out, "raised ValueError: assignment destination is read-only"),
    (of_one_call, "raised StopIteration: , though not when first called"),
    (lambda problem, width: None, "raised TypeError: .*'width'"),
    (replacing((MeasurementError,)), "an error of nan became RuntimeError: it failed"),
    (replacing((OracleFailureError,)), "the oracle raised became RuntimeError: it failed"),
    (with_a_part_of_it, r"not in `partial`.*: that has \d+ of \d+ measurements"),
    (of_other_levels, "plan is not the problem's: unknown level"),
    (changed(cost=lambda f: f.cost * 1.001), "cost is not the plan's"),
    (changed(budget=lambda f: f.budget + 1), "budget is not the problem's"),
    (changed(speedup=lambda f: f.speedup + 0.1), "speedup is not the plan's"),
    (changed(error=lambda f: f.error / 2 + 1), "error is not the oracle's: .* instead of"),
    (changed(error_source=lambda f: "guessed"), "error's source"),
    (changed(allocator=lambda f: ""), "no name"),
    (changed(citation=lambda f: None), "citation is not BibTeX"),
    (changed(citation=lambda f: "Smith 2020"), "citation is not BibTeX"),
    (changed(citation=lambda f: "@misc{key, title = {open}"), "citation is not BibTeX"),
    (changed(predicted_error=lambda f: math.nan), "predicted_error is nan"),
    (changed(predicted_error=lambda f: -1.0), "predicted_error is -1"),
    (changed(lower_bound=lambda f: math.inf), "lower_bound is inf"),
    (changed(seconds=lambda f: f.seconds + 60), "seconds are not"),
    (changed(seconds=lambda f: -1.0), "seconds are not"),
    (changed(oracle_seconds=lambda f: f.seconds + 1), "seconds are not"),
    (changed(evaluations=lambda f: 99), "evaluations are not .*: 99 instead of"),
    (changed(nfe=lambda f: f.nfe - 1), "nfe is not"),
    (changed(plain_nfe=lambda f: f.plain_nfe + 1), "plain_nfe is not"),
    (changed(trace=lambda f: f.trace[:-1]), "trace is not whole"),
    (changed(lower_bound=lambda f: f.error * 2), "bound is above the plan's own value"),
    (changed(lower_bound=lambda f: f.error), "bound is above the optimum"),
    (reading_nothing_there, "trace is wrong of plan"),
    (twice_in_the_trace, "trace has a plan twice"),
    (without_an_account, "measured twice"),
    (secretive, "measured twice|trace is not whole"),
    (of_another_mind_each_time, "differs from the first: plan|trace is not whole"),
    (by_absolute_size, "another scale of errors gives another plan"),
    (of_one_unit, "does not scale the predicted_error"),
    (predicting_something_else, "not the sum|does not scale"),
    (sure_of_its_form, "bound is above the optimum"),
    (swallowing, "swallowed|was taken"),
    (credulous, "an error of nan was taken"),
    (forgetful, "not in `partial` .*: it has none"),
    (measuring_again, "measured again"),
    (spendthrift, "more than the 1 declared"),
    (picky, "declare may_refuse"),
    (undeclared, "needs the problem's gram.*declare what it needs"),
    (with_excuses, "declare what it needs"),
    (needing_nothing, "does without"),
    (peeking(of_singles), "used that are not in the account"),
    (peeking(of_products), "used that are not in the account"),
]


@pytest.mark.parametrize(
    ("allocate", "message"), BROKEN, ids=[f"{i} {message}" for i, (_, message) in enumerate(BROKEN)]
)
def test_a_broken_promise_is_noticed(allocate: Allocator, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        check(allocate, problems=100)


def test_options_may_be_bound() -> None:
    assert check(functools.partial(gram, max_nodes=0), problems=10) >= 3
    assert check(functools.partial(beam, width=2), problems=5) == 5


@pytest.mark.parametrize(
    ("options", "message"), [({"problems": 0}, "problems is 0"), ({"rng": -1}, "rng is -1")]
)
def test_the_suite_checks_its_own_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check(uniform, **options)


def test_what_is_no_function_is_no_allocator() -> None:
    name: Any = "bisection"
    with pytest.raises(UsageError, match=r"'bisection' can't be called.*get_allocator"):
        check(name)


def test_an_inexact_allocator_is_not_exact() -> None:
    with pytest.raises(ContractError, match="optimum was missed"):
        check(uniform, problems=60, exact=True)
