"""Plans allocated on one thing and scored on another: prompt sets, seeds, languages, steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tmpdiff_bench.allocators.base import COST_TOLERANCE
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.suite.allocating import Outcome
from tmpdiff_bench.suite.bench import Prompts
from tmpdiff_bench.suite.tasks import Group, Task
from tmpdiff_bench.suite.v1 import PROMPT_SETS, SEED

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
        return {
            **self.task.columns(),
            "allocator": self.allocator,
            "kind": self.kind,
            "source": self.source,
            "native": self.native,
            "plan": str(self.plan),
            "cost": outcome.cost,
            "budget": outcome.budget,
            "speedup": outcome.speedup,
            "within_budget": outcome.cost <= outcome.budget * (1 + COST_TOLERANCE),
        }

    @property
    def _cost(self) -> float:
        costs, levels = self.task.step_costs(), self.task.levels
        return float(sum(costs[i, levels.index(level)] for i, level in enumerate(self.plan)))


def resample(plan: PrecisionPlan, steps: int) -> PrecisionPlan:
    """The plan with another number of steps: each takes the level of the step at its middle.

    >>> str(resample(PrecisionPlan.parse("fp32*2 w4a4*6"), 4))
    'fp32 w4a4*3'
    """
    ratio = len(plan) / steps
    return PrecisionPlan(tuple(plan[int((step + 0.5) * ratio)] for step in range(steps)))


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
            brought = resample(plans[other], task.steps)
            yield Transfer(task, allocator, "steps", f"S={other.steps}", other == task, brought)
