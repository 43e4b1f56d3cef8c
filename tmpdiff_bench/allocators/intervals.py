"""Intervals of steps at a low level: what bisection measures, splits and decides on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from tmpdiff_bench.allocators.base import AllocationProblem, Choice, Floats
from tmpdiff_bench.allocators.oracle import Oracle
from tmpdiff_bench.errors import UsageError

_LARGEST_WEIGHT = 1e300  # sums over steps are numbers too
Decision = Literal["low", "split", "refused", "open"]


@dataclass(frozen=True)
class Interval:
    """Some successive steps (of those offered to a level) at that level, all others high.

    `error` as measured, or, where `measured` is false, by difference from the interval that it is a
    part of. `depth` counts the splits above it. `decision`: "low" (its steps went to the level),
    "refused" (none did), "open" (some did) or "split".
    """

    level: str
    steps: tuple[int, ...]
    error: float
    measured: bool
    depth: int
    decision: Decision


@dataclass(eq=False)
class Leaf:
    """An interval that is not split; `weight` is its error to the power that adds up."""

    level: int
    steps: tuple[int, ...]
    weight: float
    measured: bool
    depth: int


@dataclass(eq=False)
class Forest:
    """One tree of intervals per low level. `power`: errors to this power add up."""

    problem: AllocationProblem
    oracle: Oracle
    power: float
    verify: bool
    leaves: list[Leaf] = field(default_factory=list)
    inner: list[Leaf] = field(default_factory=list)

    def saved(self, level: int) -> Floats:
        """What each step saves at a level, against the reference."""
        costs = self.problem.step_costs
        return np.asarray(costs[:, 0] - costs[:, level])

    def plant(self, level: int, steps: Sequence[int]) -> Leaf:
        """Measure all `steps` at a level, and make them a leaf."""
        leaf = Leaf(level, tuple(steps), self._weight(level, steps), True, 0)
        self.leaves.append(leaf)
        return leaf

    def raised(self, error: float) -> float:
        """An error to the power that adds up. Raises `UsageError` where that is no number."""
        try:
            weight = math.pow(error, self.power)
        except OverflowError:
            weight = math.inf
        if weight > _LARGEST_WEIGHT:
            raise UsageError(
                f"an error of {error:.6g} to the power {self.power:g} is too large to add up: "
                "choose a unit in which errors are smaller, or a smaller power"
            )
        return weight

    def split(self, leaf: Leaf) -> tuple[Leaf, Leaf]:
        """Halve a leaf: its left half is measured, its right half the difference, unless measured
        too (`verify`, evaluations left, or at hand anyway).
        """
        middle = (len(leaf.steps) + 1) // 2
        left, right = leaf.steps[:middle], leaf.steps[middle:]
        first = Leaf(leaf.level, left, self._weight(leaf.level, left), True, leaf.depth + 1)
        asked = self.oracle.has(self._choice(leaf.level, right)) or (
            self.verify and self.oracle.left > 1
        )
        rest = max(leaf.weight - first.weight, 0.0)
        weight = self._weight(leaf.level, right) if asked else rest
        second = replace(first, steps=right, weight=weight, measured=asked)
        place = self.leaves.index(leaf)
        self.leaves[place : place + 1] = [first, second]
        self.inner.append(leaf)
        return first, second

    def decided(self, choice: Choice) -> tuple[Interval, ...]:
        """All intervals, with what a plan made of them."""
        return (*self._records(self.inner, None), *self._records(self.leaves, choice))

    def _records(self, leaves: Sequence[Leaf], choice: Choice | None) -> Iterator[Interval]:
        for leaf in leaves:
            decision: Decision = "split"
            if choice is not None:
                low = sum(choice[step] == leaf.level for step in leaf.steps)
                decision = "low" if low == len(leaf.steps) else "open" if low else "refused"
            yield Interval(
                self.problem.levels[leaf.level],
                leaf.steps,
                leaf.weight ** (1 / self.power),
                leaf.measured,
                leaf.depth,
                decision,
            )

    def _choice(self, level: int, steps: Sequence[int]) -> Choice:
        inside = set(steps)
        return tuple(level if step in inside else 0 for step in range(self.problem.steps))

    def _weight(self, level: int, steps: Sequence[int]) -> float:
        return self.raised(self.oracle(self._choice(level, steps)))
