"""The account that every allocator keeps: which plans were asked for, and what they cost."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import numpy as np

from tmpdiff_bench.allocators.base import (
    LARGEST,
    Allocation,
    AllocationProblem,
    Floats,
    Measurement,
    MeasurementError,
)
from tmpdiff_bench.allocators.options import as_float, whole
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.plan import PrecisionPlan

F = TypeVar("F", bound=Callable[..., Allocation])


@dataclass(frozen=True)
class Declared:
    """What an allocator says of itself, as its decorator (`declares`); the contract suite measures
    it, for default options.

    `evaluations(S, L)`: the most distinct plans that it uses; None: any number. `needs`: optional
    parts of a problem that it can't do without. `predicts`: what `predicted_error` and
    `lower_bound` are about: "sum" of single errors, "gram" (the root of s'Gs), or None: a
    prediction of its own, and a bound of errors. `may_refuse`: its kind of plan may not be found
    within a budget that others are within (`InfeasibleBudgetError`).
    """

    evaluations: Callable[[int, int], int] | None = None
    _: KW_ONLY
    needs: tuple[Literal["single_errors", "gram"], ...] = ()
    predicts: Literal["sum", "gram"] | None = None
    may_refuse: bool = False

    def __call__(self, allocator: F) -> F:
        """The allocator, which has this as its `declared`."""
        vars(allocator)["declared"] = self
        return allocator


declares = Declared


def declared_by(allocator: object) -> Declared:
    """What an allocator declares; nothing where it does not (`functools.partial` is seen through,
    though not its bound: options may change that).
    """
    if isinstance(allocator, functools.partial):
        return replace(declared_by(allocator.func), evaluations=None)
    found = getattr(allocator, "declared", None)
    return found if isinstance(found, Declared) else Declared()


def evaluation_bound(allocator: object, steps: int, levels: int) -> int | None:
    """The bound that an allocator declares; None where it declares none."""
    bound = declared_by(allocator).evaluations
    return None if bound is None else int(bound(steps, levels))


@functools.cache
def cited(key: str) -> str:
    """The BibTeX entry of `references.bib` that has a key."""
    entries = Path(__file__).with_name("references.bib").read_text(encoding="utf-8").split("\n\n")
    return next(entry.strip() for entry in entries if f"{{{key}," in entry)


class Oracle:
    """Measures plans of a problem, each once, and keeps the account.

    To be used as a context: an exception that leaves it carries what was paid for as `partial`
    (a tuple of `Measurement`), whatever raised it. `limit` is the most plans that may be used, for
    allocators that stop when none is `left`; by default what `allocator` declares.
    """

    def __init__(
        self,
        problem: AllocationProblem,
        name: str,
        citation: str,
        *,
        limit: int | None = None,
        allocator: Callable[..., Allocation] | None = None,
    ) -> None:
        if not isinstance(problem, AllocationProblem):
            raise UsageError(f"{name} takes an AllocationProblem, got {problem!r}")
        self.problem = problem
        bound = evaluation_bound(allocator, problem.steps, len(problem.levels))
        self.limit = bound if limit is None else whole("max_evaluations", limit, 1)
        self._name, self._citation = name, citation
        self._found: dict[PrecisionPlan, Measurement] = {}
        self._seconds, self._started = 0.0, time.perf_counter()
        self._refused: MeasurementError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # one that the oracle raised itself may come from a call inside of `error`, with the account
        # of another problem
        if error is not None and error is not self._refused:
            # past a class that refuses attributes, such as a frozen dataclass
            BaseException.__setattr__(error, "partial", self.measured)
            if self._found:
                with contextlib.suppress(Exception):
                    error.add_note(
                        f"{self._name} had used {len(self._found)} evaluations: they are in this "
                        "exception's `partial`; go on with problem.knowing(error.partial)"
                    )

    @property
    def measured(self) -> tuple[Measurement, ...]:
        """What was used so far, in order."""
        return tuple(self._found.values())

    @property
    def left(self) -> float:
        """How many more plans may be used."""
        return math.inf if self.limit is None else self.limit - len(self._found)

    def has(self, choice: Sequence[int]) -> bool:
        """Whether a plan's error is at hand, so that asking for it costs nothing."""
        found = self._found.get(self.problem.plan(choice))
        return found is not None and not math.isnan(found.error)

    def __call__(self, choice: Sequence[int]) -> float:
        """The error of level indices; measured where it has not been.

        Raises `MeasurementError` for NaN, infinite and negative errors, and what `error` raises.
        """
        plan = self.problem.plan(choice)
        found = self._found.get(plan)
        if found is None or math.isnan(found.error):
            read = plan in self.problem.known
            error = self.problem.known[plan] if read else self._measure(plan)
            found = self._found[plan] = Measurement(plan, error, read)
        return found.error

    def singles(self) -> Floats:
        """Errors of the single plans, (S, L): those that the problem has, else measured."""
        problem = self.problem
        if problem.single_errors is not None:
            self._read_singles()
            return problem.single_errors.copy()
        errors = [0.0] * problem.steps + [self(problem.choice(plan)) for plan in problem.singles]
        return np.reshape(errors, problem.step_costs.T.shape).T.copy()

    def gram(self) -> Floats:
        """The problem's inner products, which somebody measured all single plans for."""
        gram = self.problem.need_gram(self._name)
        self._read_singles()
        return gram

    def _read_singles(self) -> None:
        """Take the single plans into the account, with their errors where these are there."""
        problem, given = self.problem, self.problem.single_errors
        for place, plan in enumerate(problem.singles):
            if given is None:
                error = problem.known.get(plan, math.nan)
            else:
                level, step = divmod(place, problem.steps)
                error = float(given[step, level + 1])
            self._found.setdefault(plan, Measurement(plan, error, read=True))

    def best(self, first: Sequence[int] | None = None) -> PrecisionPlan:
        """The best plan within the budget among those used, be they measured or read; of equal ones
        `first` if it is among them, else that used first.

        Raises `UsageError` where there is none.
        """
        problem = self.problem
        fitting = [m for m in self.measured if m.error >= 0 and problem.within(m.plan)]
        if not fitting:
            raise UsageError(f"{self._name} measured no plan within the budget")
        preferred = None if first is None else problem.plan(first)
        return min(fitting, key=lambda m: (m.error, m.plan != preferred)).plan

    def allocation(
        self,
        plan: PrecisionPlan | Sequence[int],
        *,
        predicted_error: float | None = None,
        lower_bound: float | None = None,
        intervals: tuple[Any, ...] = (),
    ) -> Allocation:
        """The result; its plan is measured if it has not been. Refuses a plan over budget."""
        problem = self.problem
        choice = problem.choice(plan) if isinstance(plan, PrecisionPlan) else problem.indices(plan)
        plan, cost = problem.plan(choice), problem.cost(choice)
        if not problem.fits(cost):
            raise AssertionError(
                f"{self._name} chose plan {plan}, over budget: it costs "
                f"{cost:.6g} of at most {problem.budget:.6g}"
            )
        error = self(choice)
        plans = [PrecisionPlan.uniform(problem.levels[0], problem.steps), *self._found]
        source = getattr(problem.error, "source", lambda plan: "measured")
        return Allocation(
            allocator=self._name,
            plan=plan,
            cost=cost,
            budget=problem.budget,
            speedup=problem.speedup(cost),
            error=error,
            error_source=source(plan),
            predicted_error=predicted_error,
            lower_bound=lower_bound,
            evaluations=len(self._found),
            nfe=problem.nfe(plans),
            plain_nfe=problem.plain_nfe(plans),
            trace=self.measured,
            seconds=time.perf_counter() - self._started,
            oracle_seconds=self._seconds,
            citation=self._citation,
            intervals=intervals,
            _problem=problem,
        )

    def _measure(self, plan: PrecisionPlan) -> float:
        started = time.perf_counter()
        try:
            value = self.problem.error(plan)
        finally:
            self._seconds += time.perf_counter() - started
        number = as_float(value)
        if not 0 <= number <= LARGEST:
            self._refused = MeasurementError(
                f"the error of plan {plan} is {value!r}: errors are numbers from 0 to {LARGEST:.0e}"
                f" ({len(self._found)} evaluations made before are in `partial`)",
                self.measured,
            )
            raise self._refused
        return number
