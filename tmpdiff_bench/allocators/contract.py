"""What every allocator promises, checked on generated problems: `check(my_allocator)`."""

from __future__ import annotations

import itertools
import math
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace

import numpy as np

from tmpdiff_bench.allocators.base import (
    Allocation,
    AllocationProblem,
    Floats,
    InfeasibleBudgetError,
    Measurement,
    MeasurementError,
)
from tmpdiff_bench.allocators.generated import Task, tasks
from tmpdiff_bench.allocators.options import as_float, seeded, whole
from tmpdiff_bench.allocators.oracle import declared_by, evaluation_bound
from tmpdiff_bench.errors import UsageError, one_line
from tmpdiff_bench.plan import PrecisionPlan

Allocate = Callable[[AllocationProblem], Allocation]
_ROUNDING = 1e-9


class ContractError(AssertionError):
    """An allocator broke a promise; the message says which, and on what problem."""


class OracleFailureError(Exception):
    """What the failing oracles of the suite raise."""


def check(
    allocate: Allocate,
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
    declared = declared_by(allocate)
    for task in itertools.islice(tasks(generator), problems):
        missing = [name for name in declared.needs if getattr(task.problem(), name) is None]
        if missing:
            _refusing(allocate, task, missing)
            continue
        problem = task.problem()
        error, started = problem.error, time.perf_counter()
        try:
            allocation = allocate(problem)
        except InfeasibleBudgetError as refusal:
            if not declared.may_refuse:
                raise ContractError(
                    f"a budget that plans are within was refused: declare may_refuse ({task})"
                ) from refusal
            continue
        except UsageError as refusal:
            raise ContractError(
                f"a problem was refused, with {refusal}: mend that, or declare what it needs "
                f"({task})"
            ) from refusal
        except Exception as failure:
            raise ContractError(f"it raised {_named(failure)} ({task})") from failure
        elapsed = time.perf_counter() - started
        solved += 1
        _unchanged(task, problem, error)
        _require(isinstance(allocation, Allocation), "it returned no Allocation", task)
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
                    f"it raised {_named(failure)}, though not when first called ({task})"
                ) from failure
    if not solved:
        raise ContractError(f"none of {problems} problems was solved")
    return solved


def _require(holds: bool, promise: str, task: Task) -> None:
    if not holds:
        raise ContractError(f"{promise} ({task})")


def _equal(found: object, expected: object, promise: str, task: Task) -> None:
    _require(found == expected, f"{promise}: {found} instead of {expected}", task)


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


def _twice(plans: Iterable[PrecisionPlan]) -> PrecisionPlan | None:
    """The first plan that was there before."""
    seen: set[PrecisionPlan] = set()
    for plan in plans:
        if plan in seen:
            return plan
        seen.add(plan)
    return None


def _unchanged(
    task: Task, problem: AllocationProblem, error: Callable[[PrecisionPlan], float]
) -> None:
    """Whether the problem is as it was given, past what freezes it."""
    given = task.problem(error)
    for name in (f.name for f in fields(problem) if f.init):
        one, other = getattr(problem, name), getattr(given, name)
        array = isinstance(one, np.ndarray)
        same = np.array_equal(one, other) if array else one == other
        _require(bool(same), f"it changed the problem's {name}", task)


def _refusing(allocate: Allocate, task: Task, missing: Sequence[str]) -> None:
    try:
        allocate(task.problem())
    except UsageError as error:
        _require(any(name in str(error) for name in missing), f"{error} names not {missing}", task)
    else:
        raise ContractError(f"it declares to need {missing}, and does without ({task})")


def _result(task: Task, found: Allocation, elapsed: float) -> None:
    """What is said of the plan, and of the call."""
    problem = task.problem()
    try:
        choice = problem.choice(found.plan)
    except UsageError as error:
        raise ContractError(f"the plan is not the problem's: {error} ({task})") from error
    cost = problem.cost(choice)
    _require(problem.fits(cost), f"the plan is over budget: it costs {cost:.6g}", task)
    _equal(found.cost, cost, "the cost is not the plan's", task)
    _equal(found.budget, problem.budget, "the budget is not the problem's", task)
    _equal(found.speedup, problem.speedup(cost), "the speedup is not the plan's", task)
    _equal(found.error, task.error(choice), "the error is not the oracle's", task)
    _equal(found.error_source, "measured", "the error's source is not the oracle's", task)
    _require(isinstance(found.allocator, str) and found.allocator != "", "it has no name", task)
    _require(_is_bibtex(found.citation), "the citation is not BibTeX, and not empty", task)
    for name in ("predicted_error", "lower_bound"):
        value = getattr(found, name)
        fits = value is None or (as_float(value) >= 0 and math.isfinite(value))
        _require(fits, f"the {name} is {value!r}, no error", task)
    ordered = 0 <= as_float(found.oracle_seconds) <= as_float(found.seconds) <= elapsed
    _require(ordered, "the seconds are not those of the call", task)


def _is_bibtex(text: object) -> bool:
    if not isinstance(text, str):
        return False
    if text == "":
        return True
    entries = re.fullmatch(r"(\s*@[a-z]+\{[^\s,{}]+,(\s*[a-z]+ = \{.*?\},?)+\s*\}\s*)+", text, re.S)
    return entries is not None and text.count("{") == text.count("}")


def _account(allocate: Allocate, task: Task, found: Allocation) -> None:
    asked: list[PrecisionPlan] = []
    problem = task.problem()

    def error(plan: PrecisionPlan) -> float:
        asked.append(plan)
        return problem.error(plan)

    again = allocate(task.problem(error))
    plans = [m.plan for m in again.trace]
    measured = {m.plan for m in again.trace if not m.read}
    for plan in asked:
        missing = f"the trace is not whole: plan {plan} was measured and is not in it as such"
        _require(plan in measured, missing, task)
    for plan in measured.difference(asked):
        raise ContractError(f"the trace is not whole: plan {plan} was not measured ({task})")
    _require(_twice(asked) is None, f"a plan was measured twice: {_twice(asked)}", task)
    _require(_twice(plans) is None, f"the trace has a plan twice: {_twice(plans)}", task)
    for m in found.trace:
        _require(_is_true(task, m), f"the trace is wrong of plan {m.plan}", task)
    _equal(again.evaluations, len(plans), "evaluations are not those of the trace", task)
    reference = problem.plan((0,) * problem.steps)
    every = [reference, *plans]
    _equal(again.nfe, problem.nfe(every), "nfe is not that of the trace", task)
    _equal(again.plain_nfe, problem.plain_nfe(every), "plain_nfe is not the trace's", task)
    _require(found.plan in {m.plan for m in found.trace}, "the plan was not measured", task)
    bound = evaluation_bound(allocate, *task.costs.shape)
    _require(
        bound is None or found.evaluations <= bound,
        f"{found.evaluations} evaluations are more than the {bound} declared",
        task,
    )


def _paid(allocate: Allocate, task: Task, found: Allocation) -> None:
    """Whether single runs that are not in the account were of no use: others change nothing."""
    problem, counted = task.problem(), {m.plan for m in found.trace}
    steps, levels = task.costs.shape
    unpaid = np.array(
        [
            problem.single(step, level) not in counted
            for level in range(1, levels)
            for step in range(steps)
        ],
        dtype=bool,
    )
    if not unpaid.any() or (task.singles is None and task.gram is None):
        return
    for seed in range(3):
        factors = 10 ** np.random.default_rng(seed).uniform(-2, 2, len(unpaid))
        factors[~unpaid] = 1
        other = replace(
            task,
            singles=None if task.singles is None else task.singles * _by_step(factors, steps),
            gram=None if task.gram is None else task.gram * np.outer(factors, factors),
        )
        again = allocate(other.problem())
        same = again.plan == found.plan and {m.plan for m in again.trace} == counted
        uses = "single errors or inner products are used that are not in the account"
        _require(same, f"{uses}: oracle.singles() and oracle.gram() count them", task)


def _by_step(factors: Floats, steps: int) -> Floats:
    """Factors of cells (by level, then step) as (S, L); 1 at the reference."""
    low = factors.reshape(-1, steps).T
    return np.column_stack([np.ones(steps), low])


def _is_true(task: Task, m: Measurement) -> bool:
    """Whether a value is the oracle's, or was there to be read."""
    problem = task.problem()
    choice = problem.choice(m.plan)
    steps = [step for step, level in enumerate(choice) if level]
    if not m.read:
        return m.error == task.error(choice)
    if len(steps) != 1:
        return False
    if task.singles is not None:
        return bool(m.error == task.singles[steps[0], choice[steps[0]]])
    return task.gram is not None and math.isnan(m.error)


def _repeatable(allocate: Allocate, task: Task, found: Allocation) -> None:
    again, differs = allocate(task.problem()), "a second call differs from the first"
    _require(again.plan == found.plan, f"{differs}: plan {again.plan} after {found.plan}", task)
    same = [m.plan for m in again.trace] == [m.plan for m in found.trace]
    _require(same, f"{differs}: other plans are in its trace, or in another order", task)


def _scaled(allocate: Allocate, task: Task, found: Allocation) -> None:
    scaled = allocate(task.problem(scale=4.0))  # a power of two: exact in floating point
    _require(scaled.plan == found.plan, "another scale of errors gives another plan", task)
    for name in ("predicted_error", "lower_bound"):
        one, other = getattr(found, name), getattr(scaled, name)
        same = (one is None) == (other is None) and (
            one is None or math.isclose(4 * one, other, rel_tol=1e-6, abs_tol=1e-6)
        )
        _require(same, f"another scale of errors does not scale the {name}", task)


def _bounded(allocate: Allocate, task: Task, found: Allocation) -> None:
    optimum, predicts = task.optimum(), declared_by(allocate).predicts
    _require(found.error >= optimum * (1 - _ROUNDING), "the error is below the optimum", task)
    if predicts == "gram" and task.gram is None:
        return
    predict = {None: task.error, "sum": task.summed, "gram": task.superposed}[predicts]
    if predicts and found.predicted_error is not None:
        expected = predict(task.problem().choice(found.plan))
        same = math.isclose(found.predicted_error, expected, rel_tol=1e-6, abs_tol=1e-6)
        _require(same, f"the predicted error is not the {predicts} that it declares", task)
    if found.lower_bound is None:
        return
    value = found.error if found.predicted_error is None else found.predicted_error
    _require(
        found.lower_bound <= value * (1 + _ROUNDING) + _ROUNDING,
        "the lower bound is above the plan's own value",
        task,
    )
    limit = task.optimum(predict=predict) * (1 + _ROUNDING) + _ROUNDING
    _require(found.lower_bound <= limit, "the lower bound is above the optimum", task)


def _bad_errors(allocate: Allocate, task: Task, found: Allocation) -> None:
    if all(m.read for m in found.trace):
        return  # the single errors said it all: nothing was asked
    for bad in (math.nan, math.inf, -1.0):
        try:
            allocate(task.problem(_always(bad)))
        except MeasurementError:
            continue
        except Exception as failure:
            raise ContractError(
                f"an error of {bad} became {_named(failure)}, not a MeasurementError ({task})"
            ) from failure
        raise ContractError(f"an error of {bad} was taken ({task})")


def _always(value: float) -> Callable[[PrecisionPlan], float]:
    return lambda plan: value


def _failing(allocate: Allocate, task: Task, found: Allocation) -> None:
    calls = sum(not m.read for m in found.trace)
    if not calls:
        return
    fails_at = calls // 2
    problem, made = task.problem(), [0]

    def error(plan: PrecisionPlan) -> float:
        if made[0] == fails_at:
            raise OracleFailureError
        made[0] += 1
        return problem.error(plan)

    try:
        allocate(task.problem(error))
    except OracleFailureError as failure:
        partial = getattr(failure, "partial", None)
        kept = None if partial is None else sum(not m.read for m in partial)
        if partial is None or kept != fails_at:
            has = "it has none" if kept is None else f"that has {kept} of {fails_at} measurements"
            raise ContractError(
                f"what was paid for is not in `partial` of what the oracle raised: {has} ({task})"
            ) from failure
        asked: list[PrecisionPlan] = []

        def counted(plan: PrecisionPlan) -> float:
            asked.append(plan)
            return problem.error(plan)

        resumed = allocate(task.problem(counted).knowing(partial))
        again = "what was known was measured again: measurements made"
        _equal(len(asked), calls - fails_at, again, task)
        _require(resumed.plan == found.plan, "going on gives another plan", task)
        return
    except Exception as failure:
        raise ContractError(
            f"what the oracle raised became {_named(failure)}: let it pass, with its `partial` "
            f"({task})"
        ) from failure
    raise ContractError(f"an exception of the oracle was swallowed ({task})")


def _optimal(allocate: Allocate, task: Task, found: Allocation) -> None:
    limit = task.optimum() * (1 + _ROUNDING) + _ROUNDING
    _require(found.error <= limit, "the optimum was missed", task)
    most = float(task.costs[:, 0].sum())
    larger = allocate(task.problem(budget=task.budget + 0.3 * most))
    _require(larger.error <= limit, "a larger budget made the error larger", task)
