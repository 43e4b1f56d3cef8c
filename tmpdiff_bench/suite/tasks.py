"""A task of the suite, and what tasks share when they run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmpdiff_bench.costs import COSTED_AS, load_costs


@dataclass(frozen=True)
class Task:
    """Which level shall each of `steps` steps of `model` run at, for `target_speedup` by
    `cost_table`? `levels[0]` is the reference.
    """

    model: str
    prompt_set: str
    levels: tuple[str, ...]
    cost_table: str
    target_speedup: float
    steps: int

    @property
    def name(self) -> str:
        """Such as `sd3/scenes-counts/fp32-w4a4/x1.5/S8`."""
        levels = "-".join(self.levels)
        return f"{self.model}/{self.prompt_set}/{levels}/x{self.target_speedup:g}/S{self.steps}"

    @property
    def group(self) -> Group:
        """Tasks of one group share their measurements."""
        return Group(self.model, self.prompt_set, self.steps)

    def step_costs(self) -> NDArray[np.float64]:
        """Costs (S, L), ms a step of the true-size model; the reference's are those of bf16."""
        names = [COSTED_AS.get(level, level) for level in self.levels]
        return load_costs(self.cost_table).step_costs(names, self.steps)

    def fewer_steps(self) -> int:
        """Most steps of the reference that cost no more than the task's budget; at least 1."""
        return max(1, math.floor(self.steps / self.target_speedup * (1 + 1e-9)))

    def columns(self) -> dict[str, Any]:
        """What result tables say of a task in every row."""
        return {"task": self.name, **asdict(self), "levels": " ".join(self.levels)}


@dataclass(frozen=True, order=True)
class Group:
    """Model, prompt set and steps: everything but levels and target speedup."""

    model: str
    prompt_set: str
    steps: int

    @property
    def name(self) -> str:
        return f"{self.model}/{self.prompt_set}/S{self.steps}"


def grouped(tasks: Sequence[Task]) -> dict[Group, list[Task]]:
    """Tasks by group, both in the order given."""
    groups: dict[Group, list[Task]] = {}
    for task in tasks:
        groups.setdefault(task.group, []).append(task)
    return groups
