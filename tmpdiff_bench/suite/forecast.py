"""How many network evaluations a run will take, counted before it starts.

Allocators ask for plans as errors tell them. What they will ask is found by running them on
invented errors, without a network; all else is counted from the tasks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from tmpdiff_bench.allocators import InfeasibleBudgetError, get_allocator
from tmpdiff_bench.plan import PrecisionPlan, nodes_per_step
from tmpdiff_bench.problems.costs import with_reference
from tmpdiff_bench.suite.allocating import TRANSFERRED, other_calibrations, problem_of
from tmpdiff_bench.suite.bench import LEVELS, Prompts
from tmpdiff_bench.suite.measured import Floats, drift_nfe, parts
from tmpdiff_bench.suite.rules import every_plan, running
from tmpdiff_bench.suite.tasks import Group, Task
from tmpdiff_bench.suite.v1 import NFE_PER_STEP, PROMPT_SETS, SEED, Profile

Plans = tuple[PrecisionPlan, ...]
# they ask for what is known, and for their choice; to solve invented problems takes them longer
_UNASKING = {"knapsack", "gram", "exhaustive"}
_TRANSFER_SHARE = 0.5  # of transferred plans, about half are the task's own or one another's


@dataclass(frozen=True)
class Forecast:
    """Network evaluations of a group's phases, over all samples."""

    allocating: int
    scoring: int
    drift: int

    @property
    def total(self) -> int:
        return self.allocating + self.scoring + self.drift


class InventedErrors:
    """Errors as if random terminal deviations superposed, w8a8's a tenth of w4a4's."""

    def __init__(self, steps: int) -> None:
        self.steps, self.asked = steps, dict[PrecisionPlan, None]()
        sizes = np.repeat([0.1, 1.0], steps) * np.tile(np.linspace(1, 2, steps), 2)
        vectors = np.random.default_rng(0).normal(size=(2 * steps, 16)) * sizes[:, None]
        self.gram: Floats = vectors @ vectors.T / 16

    @cached_property
    def singles(self) -> Floats:
        return with_reference(np.sqrt(np.diag(self.gram)), self.steps)

    def __call__(self, plan: PrecisionPlan) -> float:
        self.asked[plan] = None
        cells = plan.cells(LEVELS)
        return float(np.sqrt(max(self.gram[np.ix_(cells, cells)].sum(), 0.0)))

    def prepare(self, plans: Sequence[PrecisionPlan]) -> None:
        """Nothing to do."""


def forecast(group: Group, tasks: Sequence[Task], profile: Profile) -> Forecast:
    """Network evaluations of a group's tasks (all of one group)."""
    steps, loop = group.steps, group.steps * NFE_PER_STEP
    reference = PrecisionPlan.uniform(LEVELS[0], steps)
    recorded = [reference, *PrecisionPlan.singles(LEVELS, steps)]
    lists = every_plan(group)
    short = sorted({task.fewer_steps() for task in tasks})
    # of all prompt sets one stands for the others
    asked, chosen = _asked(
        tuple((replace(t, prompt_set=""), frozenset({*running(t, {})} - _UNASKING)) for t in tasks)
    )
    known = {*recorded, *(plan for plans in lists for plan in plans)}
    demanded = [plan for plan in asked if plan not in known]
    allocating = _nfe(recorded) + sum(_nfe(part) for plans in lists for part in parts(plans))
    allocating += (_nfe(demanded) if demanded else 0) + sum(short) * NFE_PER_STEP + loop
    own = Prompts(group.prompt_set, "calibration", profile.calibration, SEED)
    others = len(other_calibrations(group, own))
    moved = len(tasks) * len(TRANSFERRED) * (others + len(profile.prompt_sets))
    allocating += others * (_nfe(recorded) + int(len(tasks) * loop * _TRANSFER_SHARE))
    scoring = _nfe([reference, *chosen]) + sum(short) * NFE_PER_STEP + loop
    scoring += int(len(tasks) * (len(_UNASKING) - 1) * loop * _TRANSFER_SHARE)
    scoring += int(moved * loop * _TRANSFER_SHARE)
    return Forecast(
        allocating * profile.calibration + loop,  # one sample's calls are counted
        scoring * profile.evaluation,
        drift_nfe(loop, profile.calibration) if group.prompt_set == PROMPT_SETS[0] else 0,
    )


def _nfe(plans: Sequence[PrecisionPlan]) -> int:
    return sum(nodes_per_step(plans)) * NFE_PER_STEP


@lru_cache(maxsize=256)
def _asked(tasks: tuple[tuple[Task, frozenset[str]], ...]) -> tuple[Plans, Plans]:
    """Plans that are asked for, and plans that are chosen, by some allocators on some tasks."""
    steps = tasks[0][0].steps
    errors = InventedErrors(steps)
    chosen = dict[PrecisionPlan, None]()
    for task, names in tasks:
        problem = problem_of(task, errors, [NFE_PER_STEP] * steps)
        for name in sorted(names):
            with contextlib.suppress(InfeasibleBudgetError):
                chosen[get_allocator(name)(problem).plan] = None
    return tuple(errors.asked), tuple(chosen)
