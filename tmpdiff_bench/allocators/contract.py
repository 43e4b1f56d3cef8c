"""What every allocator promises, checked on generated problems: `check(my_allocator)`."""

from __future__ import annotations

import itertools
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import numpy as np

from tmpdiff_bench.allocators.base import (
    Allocation,
    AllocationProblem,
    Allocator,
    InfeasibleBudgetError,
    Measurement,
    MeasurementError,
)
from tmpdiff_bench.allocators.generated import Task, tasks
from tmpdiff_bench.allocators.options import as_float, seeded, whole
from tmpdiff_bench.allocators.oracle import declared_by, evaluation_bound
from tmpdiff_bench.errors import UsageError, one_line
from tmpdiff_bench.plan import PrecisionPlan

Error = Callable[[PrecisionPlan], float]
_ROUNDING = 1e-9


class ContractError(AssertionError):
    """An allocator broke a promise; the message says which, and on what problem."""


class OracleFailureError(Exception):
    """What the failing oracles of the suite raise."""


def check(
    allocate: Allocator,
    *,
    problems: int = 24,
    exact: bool = False,
    rng: int | np.random.Generator = 0,
) -> int:
    """Run an allocator on generated problems and check its promises; returns how many it solved.

    The problems have 1 to 6 steps and 1 to 4 levels, with errors that add up, whose deviations
    superpose, that are arbitrary, or that are all equal; some come with single errors and inner
    products. Promised are: a problem left as it was; a plan of its levels within the budget; its
    cost, speedup, budget and error as the problem gives them; an account in which every plan is
    measured once, the trace has what was measured and read, and evaluations, NFE and seconds are
    those of the trace; no use of recorded errors that are not in it; at most the evaluations that
    it declares; a citation that is BibTeX, or empty; the same result when called again, and with
    all errors, predictions and bounds multiplied by 4, when errors are; predictions that are what
    it declares to predict (what is not declared is not looked at, but for its scale); a
    `lower_bound` that brute force finds no plan below; `MeasurementError` for NaN, infinite and
    negative errors; and when the oracle raises, that exception with all that was measured in its
    `partial`, from which `problem.knowing` goes on without measuring it again.

    What an allocator `declares` decides what it may leave out: problems without what it `needs`,
    and, with `may_refuse`, those that it raises `InfeasibleBudgetError` for.

    `exact`: it must find the optimum of errors that add up, and no worse one for a larger budget.

    Raises:
        ContractError: a promise is broken, the first one that is found; an exception that should
            not have been raised is its `__cause__`.
        UsageError: `allocate` can't be called, or an option can't be used.
    """
    if not callable(allocate):
        raise UsageError(
            f"{allocate!r} can't be called: an allocator is a function (get_allocator finds ours)"
        )
    problems, generator, solved = whole("problems", problems, 1), seeded(rng), 0
    for task in itertools.islice(tasks(generator), problems):
        try:
            solved += _is_solved(allocate, task, exact)
        except ContractError as broken:
            raise ContractError(f"{broken} ({task})") from broken.__cause__
    if not solved:
        raise ContractError(f"none of {problems} problems was solved")
    return solved


def _is_solved(allocate: Allocator, task: Task, exact: bool) -> bool:
    """Whether an allocator solved a problem, all promises kept, or refused it as it declares."""
    declared, problem = declared_by(allocate), task.problem()
    missing = [name for name in declared.needs if getattr(problem, name) is None]
    if missing:
        _refusing(allocate, task, missing)
        return False
    error, started = problem.error, time.perf_counter()
    try:
        allocation = allocate(problem)
    except InfeasibleBudgetError as refusal:
        if declared.may_refuse:
            return False
        raise ContractError(
            "a budget that plans are within was refused: declare may_refuse"
        ) from refusal
    except UsageError as refusal:
        raise ContractError(
            f"a problem was refused, with {refusal}: mend that, or declare what it needs"
        ) from refusal
    except Exception as failure:
        raise ContractError(f"it raised {_named(failure)}") from failure
    elapsed = time.perf_counter() - started
    _unchanged(task, problem, error)
    _require(isinstance(allocation, Allocation), "it returned no Allocation")
    _result(task, allocation, elapsed)
    promises = [_account, _repeatable, _paid, _scaled, _bounded, _bad_errors, _failing]
    if exact and task.kind == "additive":
        promises.append(_optimal)
    for promise in promises:
        try:
            promise(allocate, task, allocation)
        except ContractError:
            raise
        except Exception as failure:
            raise ContractError(
                f"it raised {_named(failure)}, though not when first called"
            ) from failure
    return True


def _require(holds: bool, promise: str) -> None:
    if not holds:
        raise ContractError(promise)


def _equal(found: object, expected: object, promise: str) -> None:
    _require(found == expected, f"{promise}: {found} instead of {expected}")


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-6)


def _at_most(value: float, limit: float, promise: str) -> None:
    _require(value <= limit * (1 + _ROUNDING) + _ROUNDING, promise)


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


def _no_plan_twice(plans: Sequence[PrecisionPlan], promise: str) -> None:
    twice = [plan for plan, count in Counter(plans).items() if count > 1]
    _require(not twice, f"{promise}: {', '.join(map(str, twice[:1]))}")


def _recorded(problem: AllocationProblem) -> tuple[Error, list[PrecisionPlan]]:
    """The error of a problem, and the plans that it will be asked for."""
    asked: list[PrecisionPlan] = []

    def error(plan: PrecisionPlan) -> float:
        asked.append(plan)
        return problem.error(plan)

    return error, asked


def _unchanged(task: Task, problem: AllocationProblem, error: Error) -> None:
    """Whether the problem is as it was given, past what freezes it."""
    given = task.problem(error)
    for name in (f.name for f in fields(problem) if f.init):
        one, other = getattr(problem, name), getattr(given, name)
        array = isinstance(one, np.ndarray)
        same = np.array_equal(one, other) if array else one == other
        _require(bool(same), f"it changed the problem's {name}")


def _refusing(allocate: Allocator, task: Task, missing: Sequence[str]) -> None:
    try:
        allocate(task.problem())
    except UsageError as error:
        _require(any(name in str(error) for name in missing), f"{error} names not {missing}")
    else:
        raise ContractError(f"it declares to need {missing}, and does without")


def _result(task: Task, found: Allocation, elapsed: float) -> None:
    """What is said of the plan, and of the call."""
    problem = task.problem()
    try:
        choice = problem.choice(found.plan)
    except UsageError as error:
        raise ContractError(f"the plan is not the problem's: {error}") from error
    cost = problem.cost(choice)
    _require(problem.fits(cost), f"the plan is over budget: it costs {cost:.6g}")
    _equal(found.cost, cost, "the cost is not the plan's")
    _equal(found.budget, problem.budget, "the budget is not the problem's")
    _equal(found.speedup, problem.speedup(cost), "the speedup is not the plan's")
    _equal(found.error, task.error(choice), "the error is not the oracle's")
    _equal(found.error_source, "measured", "the error's source is not the oracle's")
    _require(isinstance(found.allocator, str) and found.allocator != "", "it has no name")
    _require(_is_bibtex(found.citation), "the citation is not BibTeX, and not empty")
    for name in ("predicted_error", "lower_bound"):
        value = getattr(found, name)
        fits = value is None or (as_float(value) >= 0 and math.isfinite(value))
        _require(fits, f"the {name} is {value!r}, no error")
    ordered = 0 <= as_float(found.oracle_seconds) <= as_float(found.seconds) <= elapsed
    _require(ordered, "the seconds are not those of the call")


def _is_bibtex(text: object) -> bool:
    if not isinstance(text, str):
        return False
    if text == "":
        return True
    entries = re.fullmatch(r"(\s*@[a-z]+\{[^\s,{}]+,(\s*[a-z]+ = \{.*?\},?)+\s*\}\s*)+", text, re.S)
    return entries is not None and text.count("{") == text.count("}")


def _account(allocate: Allocator, task: Task, found: Allocation) -> None:
    problem = task.problem()
    error, asked = _recorded(problem)
    again = allocate(task.problem(error))
    plans = [m.plan for m in again.trace]
    measured = {m.plan for m in again.trace if not m.read}
    whole = "the trace is not whole: plan"
    for plan in asked:
        _require(plan in measured, f"{whole} {plan} was measured and is not in it as such")
    for plan in measured.difference(asked):
        raise ContractError(f"{whole} {plan} was not measured")
    _no_plan_twice(asked, "a plan was measured twice")
    _no_plan_twice(plans, "the trace has a plan twice")
    for m in found.trace:
        _require(_is_true(task, m), f"the trace is wrong of plan {m.plan}")
    _equal(again.evaluations, len(plans), "evaluations are not those of the trace")
    every = [problem.plan((0,) * problem.steps), *plans]
    _equal(again.nfe, problem.nfe(every), "nfe is not that of the trace")
    _equal(again.plain_nfe, problem.plain_nfe(every), "plain_nfe is not the trace's")
    _require(found.plan in {m.plan for m in found.trace}, "the plan was not measured")
    bound = evaluation_bound(allocate, *task.costs.shape)
    more = f"{found.evaluations} evaluations are more than the {bound} declared"
    _require(bound is None or found.evaluations <= bound, more)


def _paid(allocate: Allocator, task: Task, found: Allocation) -> None:
    """Whether single runs that are not in the account were of no use: others change nothing."""
    problem, counted = task.problem(), {m.plan for m in found.trace}
    unpaid = np.array([plan not in counted for plan in problem.singles], dtype=bool)
    if not unpaid.any() or (task.singles is None and task.gram is None):
        return
    for seed in range(3):
        factors = 10 ** np.random.default_rng(seed).uniform(-2, 2, len(unpaid))
        factors[~unpaid] = 1
        low = factors.reshape(-1, problem.steps).T  # of cells by level, then step; now as (S, L)
        by_step = np.column_stack([np.ones(problem.steps), low])
        other = replace(
            task,
            singles=None if task.singles is None else task.singles * by_step,
            gram=None if task.gram is None else task.gram * np.outer(factors, factors),
        )
        again = allocate(other.problem())
        same = again.plan == found.plan and {m.plan for m in again.trace} == counted
        uses = "single errors or inner products are used that are not in the account"
        _require(same, f"{uses}: oracle.singles() and oracle.gram() count them")


def _is_true(task: Task, m: Measurement) -> bool:
    """Whether a value is the oracle's, or was there to be read."""
    choice = task.problem().choice(m.plan)
    steps = [step for step, level in enumerate(choice) if level]
    if not m.read:
        return m.error == task.error(choice)
    if len(steps) != 1:
        return False
    if task.singles is not None:
        return bool(m.error == task.singles[steps[0], choice[steps[0]]])
    return task.gram is not None and math.isnan(m.error)


def _repeatable(allocate: Allocator, task: Task, found: Allocation) -> None:
    again, differs = allocate(task.problem()), "a second call differs from the first"
    _require(again.plan == found.plan, f"{differs}: plan {again.plan} after {found.plan}")
    same = [m.plan for m in again.trace] == [m.plan for m in found.trace]
    _require(same, f"{differs}: other plans are in its trace, or in another order")


def _scaled(allocate: Allocator, task: Task, found: Allocation) -> None:
    scaled = allocate(task.problem(scale=4.0))  # a power of two: exact in floating point
    _require(scaled.plan == found.plan, "another scale of errors gives another plan")
    for name in ("predicted_error", "lower_bound"):
        one, other = getattr(found, name), getattr(scaled, name)
        same = (one is None) == (other is None) and (one is None or _close(4 * one, other))
        _require(same, f"another scale of errors does not scale the {name}")


def _bounded(allocate: Allocator, task: Task, found: Allocation) -> None:
    optimum, predicts = task.optimum(), declared_by(allocate).predicts
    _require(found.error >= optimum * (1 - _ROUNDING), "the error is below the optimum")
    if predicts == "gram" and task.gram is None:
        return
    predict = {None: task.error, "sum": task.summed, "gram": task.superposed}[predicts]
    if predicts and found.predicted_error is not None:
        expected = predict(task.problem().choice(found.plan))
        promise = f"the predicted error is not the {predicts} that it declares"
        _require(_close(found.predicted_error, expected), promise)
    if found.lower_bound is None:
        return
    value = found.error if found.predicted_error is None else found.predicted_error
    _at_most(found.lower_bound, value, "the lower bound is above the plan's own value")
    _at_most(found.lower_bound, task.optimum(predict), "the lower bound is above the optimum")


def _bad_errors(allocate: Allocator, task: Task, found: Allocation) -> None:
    if all(m.read for m in found.trace):
        return  # the single errors said it all: nothing was asked
    for bad in (math.nan, math.inf, -1.0):

        def error(plan: PrecisionPlan, value: float = bad) -> float:
            return value

        try:
            allocate(task.problem(error))
        except MeasurementError:
            continue
        except Exception as failure:
            raise ContractError(
                f"an error of {bad} became {_named(failure)}, not a MeasurementError"
            ) from failure
        raise ContractError(f"an error of {bad} was taken")


def _failing(allocate: Allocator, task: Task, found: Allocation) -> None:
    calls = sum(not m.read for m in found.trace)
    if not calls:
        return
    fails_at = calls // 2
    problem = task.problem()
    error, made = _recorded(problem)

    def failing(plan: PrecisionPlan) -> float:
        if len(made) == fails_at:
            raise OracleFailureError
        return error(plan)

    try:
        allocate(task.problem(failing))
    except OracleFailureError as failure:
        partial = getattr(failure, "partial", None)
        kept = None if partial is None else sum(not m.read for m in partial)
        if partial is None or kept != fails_at:
            has = "it has none" if kept is None else f"that has {kept} of {fails_at} measurements"
            raise ContractError(
                f"what was paid for is not in `partial` of what the oracle raised: {has}"
            ) from failure
        counted, asked = _recorded(problem)
        resumed = allocate(task.problem(counted).knowing(partial))
        again = "what was known was measured again: measurements made"
        _equal(len(asked), calls - fails_at, again)
        _require(resumed.plan == found.plan, "going on gives another plan")
    except Exception as failure:
        raise ContractError(
            f"what the oracle raised became {_named(failure)}: let it pass, with its `partial`"
        ) from failure
    else:
        raise ContractError("an exception of the oracle was swallowed")


def _optimal(allocate: Allocator, task: Task, found: Allocation) -> None:
    optimum, most = task.optimum(), float(task.costs[:, 0].sum())
    _at_most(found.error, optimum, "the optimum was missed")
    larger = allocate(task.problem(budget=task.budget + 0.3 * most))
    _at_most(larger.error, optimum, "a larger budget made the error larger")
