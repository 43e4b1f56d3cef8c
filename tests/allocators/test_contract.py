"""Every allocator keeps the contract, and the contract catches those that do not."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import itertools
from collections.abc import Callable

import pytest

from tmpdiff_bench.allocators import (
    ALLOCATORS,
    Allocation,
    AllocationProblem,
    Oracle,
    evaluation_bound,
    exhaustive,
    get_allocator,
    greedy_forward,
    uniform,
)
from tmpdiff_bench.allocators.contract import ContractError, check
from tmpdiff_bench.errors import UsageError

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


def over_budget(problem: AllocationProblem) -> Allocation:
    found = uniform(problem)
    plan = (0,) * problem.steps
    return dataclasses.replace(found, plan=problem.plan(plan), cost=problem.cost(plan))


def flattering(problem: AllocationProblem) -> Allocation:
    found = greedy_forward(problem)
    return dataclasses.replace(found, error=found.error / 2)


def without_an_account(problem: AllocationProblem) -> Allocation:
    for level in problem.levels:
        if problem.fits(problem.step_costs[:, problem.levels.index(level)].sum()):
            problem.error(problem.plan([problem.levels.index(level)] * problem.steps))
    return uniform(problem)


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


def too_sure(problem: AllocationProblem) -> Allocation:
    return dataclasses.replace(exhaustive(problem), lower_bound=1e9)


def swallowing(problem: AllocationProblem) -> Allocation:
    def error(plan: object) -> float:
        try:
            return problem.error(plan)  # type: ignore[arg-type]
        except Exception:
            return 0.0

    return uniform(dataclasses.replace(problem, error=error))


def spendthrift(problem: AllocationProblem) -> Allocation:
    return exhaustive(problem)


spendthrift.evaluation_bound = lambda steps, levels: 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("allocate", "message"),
    [
        (over_budget, "over budget"),
        (flattering, "error is not the oracle's"),
        (without_an_account, "measured twice"),
        (of_another_mind_each_time, "differs from the first|trace is not whole"),
        (by_absolute_size, "another scale"),
        (too_sure, "lower bound"),
        (swallowing, "swallowed"),
        (spendthrift, "more than the 1 declared"),
    ],
)
def test_a_broken_promise_is_noticed(
    allocate: Callable[[AllocationProblem], Allocation], message: str
) -> None:
    with pytest.raises(ContractError, match=message):
        check(allocate, problems=200)


def test_an_inexact_allocator_is_not_exact() -> None:
    with pytest.raises(ContractError, match="optimum was missed"):
        check(uniform, problems=60, exact=True)
