"""Running allocators on a task, bringing plans from other tasks, and the rows that this makes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tmpdiff_bench.allocators import Allocation, AllocationProblem, InfeasibleBudgetError, regret
from tmpdiff_bench.allocators.base import COST_TOLERANCE
from tmpdiff_bench.errors import one_line
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.suite.bench import Prompts
from tmpdiff_bench.suite.measured import Errors
from tmpdiff_bench.suite.rules import FEWER_STEPS, OURS, Allocate, left_out, running
from tmpdiff_bench.suite.tasks import Group, Task
from tmpdiff_bench.suite.v1 import PROMPT_SETS, SEED, THREE
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
        told = ("allocator", "status", "reason", "cost", "budget", "speedup", "error", "seconds")
        counted = ("evaluations", "nfe", "nfe_plain")
        return {
            **self.task.columns(),
            **{name: getattr(self, name) for name in (*told, "predicted_error", "lower_bound")},
            **{name: getattr(self, name) if ran else None for name in counted},
            "plan": str(self.plan) if ran else "",
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
        return Outcome(task, name, "infeasible", one_line(error))
    except caught as error:
        return Outcome(task, name, "failed", f"{type(error).__name__}: {one_line(error)}")
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


TRANSFERRED = ("gram",)  # it needs single runs only, so other calibrations cost little
LANGUAGES = ("en", "de")
LANGUAGE_STEPS = 8
OTHER_SEED = SEED + 1


@dataclass(frozen=True)
class Transfer:
    """A plan for `task` by `allocator`, allocated on `source` instead of the task's own; or the
    task's own, where `native`.
    """

    task: Task
    allocator: str
    kind: str
    source: str
    native: bool
    plan: PrecisionPlan

    def columns(self) -> dict[str, Any]:
        """What the table of transfers says of the plan in every row."""
        outcome = Outcome(self.task, self.allocator, plan=self.plan, cost=self._cost)
        own = ("allocator", "kind", "source", "native")
        return {
            **self.task.columns(),
            **{name: getattr(self, name) for name in own},
            **{name: getattr(outcome, name) for name in ("cost", "budget", "speedup")},
            "plan": str(self.plan),
            "within_budget": outcome.cost <= outcome.budget * (1 + COST_TOLERANCE),
        }

    @property
    def _cost(self) -> float:
        costs, levels = self.task.step_costs(), self.task.levels
        return float(sum(costs[i, levels.index(level)] for i, level in enumerate(self.plan)))


def other_calibrations(group: Group, own: Prompts) -> dict[tuple[str, str], Prompts]:
    """Other prompts and seeds to allocate a group's tasks on, by (kind, source); on the first
    prompt set only, and in one language with few steps only, as each takes all single runs again.
    """
    if group.prompt_set != PROMPT_SETS[0]:
        return {}
    found = {("seed", f"seed {OTHER_SEED}"): replace(own, seed=OTHER_SEED)}
    if group.steps == LANGUAGE_STEPS:
        found |= {("language", name): replace(own, language=name) for name in LANGUAGES}
    return found


def from_others(task: Task, outcomes: Mapping[Task, Sequence[Outcome]]) -> Iterator[Transfer]:
    """Plans that the same allocator chose for the same task of another prompt set, or of another
    number of steps, and its own beside them.
    """
    for allocator in TRANSFERRED:
        plans = {
            other: plan
            for other, found in outcomes.items()
            if (plan := next((o.plan for o in found if o.allocator == allocator), None))
        }
        sets = [o for o in plans if replace(o, prompt_set=task.prompt_set) == task]
        numbers = [o for o in plans if replace(o, steps=task.steps) == task]
        for other in sets if len(sets) > 1 else ():
            name = other.prompt_set
            yield Transfer(task, allocator, "prompt_set", name, other == task, plans[other])
        for other in numbers if len(numbers) > 1 else ():
            brought = plans[other].resampled(task.steps)
            yield Transfer(task, allocator, "steps", f"S={other.steps}", other == task, brought)
