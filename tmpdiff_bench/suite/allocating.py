"""Running allocators on a task, and the rows that say what came out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tmpdiff_bench.allocators import (
    Allocation,
    AllocationProblem,
    InfeasibleBudgetError,
    regret,
)
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.suite.measured import Errors
from tmpdiff_bench.suite.rules import FEWER_STEPS, OURS, Allocate, left_out, running
from tmpdiff_bench.suite.tasks import Task
from tmpdiff_bench.suite.v1 import THREE
from tmpdiff_bench.trajectory import NonFiniteLatentsError


@dataclass(frozen=True)
class Outcome:
    """What an allocator did on a task; `plan` is None where it did not run, for `reason`."""

    task: Task
    allocator: str
    status: str = "ok"
    reason: str = ""
    plan: PrecisionPlan | None = None
    cost: float = math.nan
    error: float = math.nan
    predicted_error: float = math.nan
    lower_bound: float = math.nan
    evaluations: int = 0
    nfe: int = 0
    nfe_plain: int = 0
    seconds: float = math.nan

    @property
    def budget(self) -> float:
        return float(self.task.step_costs()[:, 0].sum() / self.task.target_speedup)

    @property
    def speedup(self) -> float:
        return float(self.task.step_costs()[:, 0].sum() / self.cost)

    def row(self, optimum: float, seconds_per_nfe: float) -> dict[str, Any]:
        """Of the table of allocations; `optimum` is the least error of any plan, or NaN."""
        ran = self.plan is not None
        return {
            **self.task.columns(),
            "allocator": self.allocator,
            "status": self.status,
            "reason": self.reason,
            "plan": str(self.plan) if ran else "",
            "cost": self.cost,
            "budget": self.budget,
            "speedup": self.speedup,
            "error": self.error,
            "predicted_error": self.predicted_error,
            "lower_bound": self.lower_bound,
            "evaluations": self.evaluations if ran else None,
            "nfe": self.nfe if ran else None,
            "nfe_plain": self.nfe_plain if ran else None,
            "seconds": self.seconds,
            "measuring_seconds": self.nfe * seconds_per_nfe if ran else math.nan,
            "optimum_error": optimum,
            "regret": regret(self.error, optimum),
        }


def problem_of(task: Task, errors: Errors, nfe_per_step: Sequence[int]) -> AllocationProblem:
    """The problem of a task's levels, with single errors and inner products."""
    columns = [THREE.index(level) for level in task.levels]
    low = np.concatenate([(c - 1) * task.steps + np.arange(task.steps) for c in columns[1:]])
    return AllocationProblem.for_speedup(
        task.target_speedup,
        levels=task.levels,
        step_costs=task.step_costs(),
        error=errors,
        single_errors=errors.singles[:, columns],
        gram=errors.gram[np.ix_(low, low)],
        nfe_per_step=list(nfe_per_step),
    )


def allocate_all(
    task: Task,
    errors: Errors,
    short: Callable[[int], float],
    nfe_per_step: Sequence[int],
    samples: int,
    contributed: Mapping[str, Allocate],
) -> list[Outcome]:
    """Every allocator on a task, ours in their order, then the contributed ones.

    `short(n)` is the error of the reference with n steps. An allocator of ours fails only by
    `InfeasibleBudgetError`, or where a run diverges; a contributed one may fail by anything.
    """
    problem = problem_of(task, errors, nfe_per_step)
    allocators = running(task, contributed)
    outcomes = []
    for name in (*OURS, *contributed):
        if name == FEWER_STEPS:
            outcomes.append(_fewer_steps(task, short, nfe_per_step, samples))
        elif name in allocators:
            caught = Exception if name in contributed else (NonFiniteLatentsError,)
            outcomes.append(_outcome(task, name, allocators[name], problem, samples, caught))
        else:
            outcomes.append(Outcome(task, name, "left out", left_out(task, name)))
    return outcomes


def absent(task: Task, reason: str, contributed: Mapping[str, Allocate]) -> list[Outcome]:
    """The outcomes of a task whose model is not there."""
    return [Outcome(task, name, "no weights", reason) for name in (*OURS, *contributed)]


def optimum_of(outcomes: Sequence[Outcome]) -> float:
    """The least error of any plan within the budget, where all were measured; else NaN."""
    found = [o.error for o in outcomes if o.allocator == "exhaustive"]
    return found[0] if found else math.nan


def _outcome(
    task: Task,
    name: str,
    allocate: Allocate,
    problem: AllocationProblem,
    samples: int,
    caught: type[Exception] | tuple[type[Exception], ...],
) -> Outcome:
    try:
        found: Allocation = allocate(problem)
    except InfeasibleBudgetError as error:
        return Outcome(task, name, "infeasible", _line(error))
    except caught as error:
        return Outcome(task, name, "failed", f"{type(error).__name__}: {_line(error)}")
    per_step = problem.nfe([PrecisionPlan.uniform(task.levels[0], task.steps)])
    return Outcome(
        task,
        name,
        plan=found.plan,
        cost=problem.cost(found.plan),  # ours, not the allocator's word
        error=problem.error(found.plan),
        predicted_error=_number(found.predicted_error),
        lower_bound=_number(found.lower_bound),
        evaluations=found.evaluations,
        nfe=found.nfe * samples,
        nfe_plain=(1 + found.evaluations) * per_step * samples,
        seconds=found.seconds - found.oracle_seconds,
    )


def _fewer_steps(
    task: Task, short: Callable[[int], float], nfe_per_step: Sequence[int], samples: int
) -> Outcome:
    steps = task.fewer_steps()
    # each step of a shorter loop takes as many calls of the network
    nfe = (sum(nfe_per_step) + steps * nfe_per_step[0]) * samples
    return Outcome(
        task,
        FEWER_STEPS,
        plan=PrecisionPlan.uniform(task.levels[0], steps),
        cost=float(task.step_costs()[:steps, 0].sum()),
        error=short(steps),
        evaluations=1,
        nfe=nfe,
        nfe_plain=nfe,
        seconds=0.0,
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
