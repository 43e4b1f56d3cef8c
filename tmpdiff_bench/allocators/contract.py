"""What every allocator promises, checked on generated problems: `check(my_allocator)`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from tmpdiff_bench.allocators.base import (
    Allocation,
    AllocationProblem,
    Floats,
    InfeasibleBudgetError,
    MeasurementError,
)
from tmpdiff_bench.allocators.oracle import evaluation_bound
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.plan import PrecisionPlan

Allocate = Callable[[AllocationProblem], Allocation]
_ROUNDING = 1e-9


class ContractError(AssertionError):
    """An allocator broke a promise; the message says which, and on what problem."""


class OracleFailureError(Exception):
    """What the failing oracles of the suite raise."""


@dataclass(frozen=True, eq=False)
class Task:
    """A generated problem: its kind, its errors, and what its problem is built from."""

    kind: str
    costs: Floats
    budget: float
    error: Callable[[tuple[int, ...]], float]
    singles: Floats | None
    gram: Floats | None

    @property
    def levels(self) -> tuple[str, ...]:
        return tuple(f"level{index}" for index in range(self.costs.shape[1]))

    def problem(
        self,
        error: Callable[[PrecisionPlan], float] | None = None,
        *,
        scale: float = 1.0,
        budget: float | None = None,
    ) -> AllocationProblem:
        """Make the problem; `scale` multiplies all errors."""
        places = {level: index for index, level in enumerate(self.levels)}
        return AllocationProblem(
            levels=self.levels,
            step_costs=self.costs,
            budget=self.budget if budget is None else budget,
            error=error or (lambda plan: scale * self.error(tuple(places[name] for name in plan))),
            single_errors=None if self.singles is None else self.singles * scale,
            gram=None if self.gram is None else self.gram * scale**2,
        )

    def optimum(self, budget: float | None = None) -> float:
        """The least error within the budget, by brute force."""
        problem = self.problem(budget=budget)
        steps, levels = self.costs.shape
        return min(
            self.error(choice)
            for choice in itertools.product(range(levels), repeat=steps)
            if problem.fits(problem.cost(choice))
        )

    def __str__(self) -> str:
        steps, levels = self.costs.shape
        return f"{self.kind} problem, S={steps}, L={levels}, budget {self.budget:.6g}"


def check(
    allocate: Allocate,
    *,
    problems: int = 24,
    exact: bool = False,
    rng: int | np.random.Generator = 0,
) -> int:
    """Run an allocator on generated problems and check its promises; returns how many it solved.

    The problems have 1 to 6 steps and 1 to 4 levels, with errors that add up, whose deviations
    superpose, that are arbitrary, or that are all equal. Promised are: a plan of the problem's
    levels within the budget, with its cost, its error as the oracle gives it, and honest counts
    (no plan measured twice, at most the evaluations that the allocator declares); the same result
    when called again, and with all errors multiplied by 4; an error not below the optimum, and on
    errors that add up a `lower_bound` not above it; `MeasurementError` for NaN, infinite and
    negative errors; and when the oracle raises, that exception with all that was measured in its
    `partial`, from which `problem.knowing` goes on without measuring it again.

    `exact`: it must find the optimum of errors that add up, and no worse one for a larger budget.
    Problems may be left out by `InfeasibleBudgetError` (no plan of the allocator's kind), or by a
    `UsageError` that names a missing `gram` or `single_errors`.

    Raises:
        ContractError: a promise is broken; the first one that is found.
    """
    generator = np.random.default_rng(rng)
    solved = 0
    for task in itertools.islice(tasks(generator), problems):
        try:
            allocation = allocate(task.problem())
        except InfeasibleBudgetError:
            continue
        except UsageError as error:
            if "gram" in str(error) or "single_errors" in str(error):
                continue
            raise
        solved += 1
        for promise in (_account, _repeatable, _scaled, _bounded, _bad_errors, _failing):
            promise(allocate, task, allocation)
        if exact and task.kind == "additive":
            _optimal(allocate, task, allocation)
    if not solved:
        raise ContractError(f"none of {problems} problems was solved")
    return solved


def tasks(rng: np.random.Generator) -> Iterator[Task]:
    """Problems of all kinds, without end."""
    for kind in itertools.cycle(("additive", "superposed", "arbitrary", "equal", "unrecorded")):
        steps, levels = int(rng.integers(1, 7)), int(rng.integers(2, 5))
        if levels**steps > 800:
            levels = 2
        levels = 1 if rng.random() < 0.05 else levels
        costs = np.sort(rng.uniform(0.2, 1.0, levels))[::-1] * np.ones((steps, 1))
        if rng.random() < 0.4:
            costs = costs * rng.uniform(0.5, 2.0, (steps, 1))
        least, most = costs.min(axis=1).sum(), costs[:, 0].sum()
        # now and then the ends of the range, which have their own ways of going wrong
        place = rng.choice([0.0, 1.0, rng.random(), rng.random()])
        budget = float(least + place * (most - least)) * (1 + 1e-12)
        singles = rng.gamma(1.0, size=(steps, levels)) * np.arange(levels)
        if kind == "equal":
            singles = np.ones((steps, levels)) * (np.arange(levels) > 0)
        cells = singles[:, 1:].T.ravel()
        gram = np.outer(cells, cells)
        if kind == "superposed":
            vectors = rng.normal(size=(len(cells), 4)) * cells[:, None]
            gram = vectors @ vectors.T
            singles[:, 1:] = np.sqrt(np.diag(gram)).reshape(levels - 1, steps).T
        key = int(rng.integers(2**31))

        def error(
            choice: tuple[int, ...],
            kind: str = kind,
            singles: Floats = singles,
            gram: Floats = gram,
            key: int = key,
        ) -> float:
            if kind == "superposed":
                low = [i for i, level in enumerate(choice) if level]
                rows = [(choice[i] - 1) * len(choice) + i for i in low]
                return math.sqrt(max(float(gram[np.ix_(rows, rows)].sum()), 0.0))
            if kind == "arbitrary" and any(choice):
                return float(np.random.default_rng([key, *choice]).gamma(1.0))
            return math.fsum(singles[step, level] for step, level in enumerate(choice))

        recorded = kind in ("additive", "superposed")
        yield Task(
            "additive" if kind in ("equal", "unrecorded") else kind,
            costs,
            budget,
            error,
            singles if recorded else None,
            gram if recorded else None,
        )


def _require(holds: bool, promise: str, task: Task) -> None:
    if not holds:
        raise ContractError(f"{promise} ({task})")


def _account(allocate: Allocate, task: Task, found: Allocation) -> None:
    asked: list[PrecisionPlan] = []
    problem = task.problem()

    def error(plan: PrecisionPlan) -> float:
        asked.append(plan)
        return problem.error(plan)

    again = allocate(task.problem(error))
    choice = problem.choice(found.plan)
    _require(problem.fits(problem.cost(choice)), "the plan is over budget", task)
    _require(found.cost == problem.cost(choice), "the cost is not the plan's", task)
    _require(found.error == task.error(choice), "the error is not the oracle's", task)
    _require(len(asked) == len(set(asked)), "a plan was measured twice", task)
    measured = [m.plan for m in again.trace if not m.read]
    _require(sorted(measured, key=str) == sorted(asked, key=str), "the trace is not whole", task)
    _require(again.evaluations == len({m.plan for m in again.trace}), "evaluations differ", task)
    _require(found.plan in {m.plan for m in found.trace}, "the plan was not measured", task)
    bound = evaluation_bound(allocate, *task.costs.shape)
    _require(
        bound is None or found.evaluations <= bound,
        f"{found.evaluations} evaluations are more than the {bound} declared",
        task,
    )


def _repeatable(allocate: Allocate, task: Task, found: Allocation) -> None:
    again = allocate(task.problem())
    same = [m.plan for m in again.trace] == [m.plan for m in found.trace]
    _require(again.plan == found.plan and same, "a second call differs from the first", task)


def _scaled(allocate: Allocate, task: Task, found: Allocation) -> None:
    scaled = allocate(task.problem(scale=4.0))  # a power of two: exact in floating point
    _require(scaled.plan == found.plan, "another scale of errors gives another plan", task)


def _bounded(allocate: Allocate, task: Task, found: Allocation) -> None:
    optimum = task.optimum()
    _require(found.error >= optimum * (1 - _ROUNDING), "the error is below the optimum", task)
    if found.lower_bound is None:
        return
    if found.predicted_error is not None:
        limit = found.predicted_error * (1 + _ROUNDING)
        _require(found.lower_bound <= limit, "the lower bound is above the prediction", task)
    if task.kind == "additive":
        limit = optimum * (1 + _ROUNDING) + _ROUNDING
        _require(found.lower_bound <= limit, "the lower bound is above the optimum", task)


def _bad_errors(allocate: Allocate, task: Task, found: Allocation) -> None:
    if all(m.read for m in found.trace):
        return  # the single errors said it all: nothing was asked
    for bad in (math.nan, math.inf, -1.0):
        try:
            allocate(task.problem(lambda plan, bad=bad: bad))  # type: ignore[misc]
        except MeasurementError:
            continue
        raise ContractError(f"an error of {bad} was taken ({task})")


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
        if partial is None or sum(not m.read for m in partial) != fails_at:
            raise ContractError(f"what was paid for is not in `partial` ({task})") from failure
        asked: list[PrecisionPlan] = []

        def counted(plan: PrecisionPlan) -> float:
            asked.append(plan)
            return problem.error(plan)

        resumed = allocate(task.problem(counted).knowing(partial))
        _require(len(asked) == calls - fails_at, "what was known was measured again", task)
        _require(resumed.plan == found.plan, "going on gives another plan", task)
        return
    raise ContractError(f"an exception of the oracle was swallowed ({task})")


def _optimal(allocate: Allocate, task: Task, found: Allocation) -> None:
    limit = task.optimum() * (1 + _ROUNDING) + _ROUNDING
    _require(found.error <= limit, "the optimum was missed", task)
    most = float(task.costs[:, 0].sum())
    larger = allocate(task.problem(budget=task.budget + 0.3 * most))
    _require(larger.error <= limit, "a larger budget made the error larger", task)
