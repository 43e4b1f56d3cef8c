"""Intervals of steps at a low level: what bisection measures, splits and decides on."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
        decisions: list[Decision] = ["split"] * len(self.inner)
        for leaf in self.leaves:
            low = sum(choice[step] == leaf.level for step in leaf.steps)
            decisions.append("low" if low == len(leaf.steps) else "open" if low else "refused")
        return tuple(
            Interval(
                self.problem.levels[leaf.level],
                leaf.steps,
                leaf.weight ** (1 / self.power),
                leaf.measured,
                leaf.depth,
                decision,
            )
            for leaf, decision in zip((*self.inner, *self.leaves), decisions, strict=True)
        )

    def _choice(self, level: int, steps: Sequence[int]) -> Choice:
        inside = set(steps)
        return tuple(level if step in inside else 0 for step in range(self.problem.steps))

    def _weight(self, level: int, steps: Sequence[int]) -> float:
        return self.raised(self.oracle(self._choice(level, steps)))


_NEAR = 1e-7  # relative


@dataclass(frozen=True, eq=False)
class Estimates:
    """Per step and level (S, L): the error if an interval's is spread by saved cost, and the least
    and largest it can be. Infinite for levels that a step may not take.
    """

    mean: Floats
    least: Floats
    largest: Floats

    @classmethod
    def of(cls, problem: AllocationProblem, leaves: Sequence[Leaf]) -> Estimates:
        """Spread the leaves' errors; levels without a leaf cost as much per saved cost as the worst
        leaf (they were not measured, and serve only where the budget can't be met without).
        """
        costs = problem.step_costs
        saved = costs[:, :1] - costs
        mean, least, largest = found = np.full((3, *costs.shape), math.inf)
        worst = 0.0
        for leaf in leaves:
            steps = list(leaf.steps)
            total = math.fsum(saved[steps, leaf.level])
            mean[steps, leaf.level] = leaf.weight * saved[steps, leaf.level] / total
            least[steps, leaf.level] = leaf.weight if len(steps) == 1 else 0.0
            largest[steps, leaf.level] = leaf.weight
            worst = max(worst, leaf.weight / total)
        measured = {leaf.level for leaf in leaves}
        for level in set(range(1, len(problem.levels))) - measured:
            saves = saved[:, level] > 0
            found[:, saves, level] = (worst or 1.0) * saved[saves, level]
        found[:, :, 0] = 0.0
        return cls(mean, least, largest)


@dataclass(frozen=True, eq=False)
class Filling:
    """A plan within the budget; `last` the (step, level) lowered last; `price` the error per saved
    cost of what would be lowered next, infinite where nothing is left; `trimmed`: something lowered
    was taken back, as the last step saved more than was needed.
    """

    choice: Choice
    last: tuple[int, int]
    price: float
    trimmed: bool


def fill(problem: AllocationProblem, estimates: Estimates, leaves: Sequence[Leaf]) -> Filling:
    """Lower steps in order of estimated error per saved cost until the plan fits, then take back
    what is not needed. Steps of one interval are taken from the side of its better neighbour.
    """
    moves = sorted(_moves(problem, estimates, _positions(problem, leaves)))
    choice, costs = [0] * problem.steps, problem.step_costs.tolist()
    taken: list[tuple[int, int, int]] = []
    price, cost = math.inf, problem.reference_cost
    for efficiency, _, _, step, level in moves:
        if _fits(problem, cost, choice):
            price = efficiency
            break
        taken.append((step, choice[step], level))
        cost += costs[step][level] - costs[step][choice[step]]
        choice[step] = level
    last, full = (taken[-1][0], taken[-1][2]), tuple(choice)
    for step, before, level in reversed(taken):
        if choice[step] == level:
            choice[step] = before
            more = cost + costs[step][before] - costs[step][level]
            if _fits(problem, more, choice):
                cost = more
            else:
                choice[step] = level
    return Filling(tuple(choice), last, price, tuple(choice) != full)


def _fits(problem: AllocationProblem, cost: float, choice: Sequence[int]) -> bool:
    """Whether a choice is within the budget; its cost, as summed up so far, is rounded, so it is
    summed anew where that could matter.
    """
    near = abs(cost - problem.budget) <= _NEAR * max(abs(problem.budget), problem.reference_cost)
    return problem.fits(problem.cost(choice) if near else cost)


def possible_gains(
    problem: AllocationProblem, estimates: Estimates, filling: Filling, leaves: Sequence[Leaf]
) -> list[float]:
    """For each leaf, how much error could be saved at the filling's price of cost if the leaf's
    error lay in its steps as unluckily as can be: 0 where no split can change the choice.
    """
    if math.isinf(filling.price):
        return [0.0] * len(leaves)
    priced = filling.price * problem.step_costs
    least, largest = estimates.least + priced, estimates.largest + priced
    gains = []
    for leaf in leaves:
        chosen = [s for s in leaf.steps if filling.choice[s] == leaf.level]
        refused = [s for s in leaf.steps if filling.choice[s] != leaf.level]
        if len(leaf.steps) == 1:
            gains.append(0.0)
            continue
        others = np.delete(least, leaf.level, axis=1).min(axis=1)
        # one chosen step may hold all of the error, all refused ones but one may hold none
        worst = max((largest[s, leaf.level] - others[s] for s in chosen), default=0.0)
        spared = [largest[s, filling.choice[s]] - least[s, leaf.level] for s in refused]
        gains.append(max(worst, 0.0) + math.fsum(max(gain, 0.0) for gain in spared))
    return gains


def _moves(
    problem: AllocationProblem, estimates: Estimates, positions: dict[tuple[int, int], int]
) -> list[tuple[float, int, int, int, int]]:
    """(error per saved cost, position, order, step, level): each step's way along the lower convex
    hull of its levels, from the reference to its cheapest.
    """
    moves = []
    for step, (costs, errors) in enumerate(zip(problem.step_costs, estimates.mean, strict=True)):
        here, order = 0, 0
        while True:
            cheaper = [
                ((errors[level] - errors[here]) / (costs[here] - costs[level]), costs[level], level)
                for level in range(len(costs))
                if costs[level] < costs[here] and math.isfinite(errors[level])
            ]
            if not cheaper:
                break
            efficiency, _, level = min(cheaper)
            moves.append((efficiency, positions.get((step, level), step), order, step, level))
            here, order = level, order + 1
    return moves


def _positions(problem: AllocationProblem, leaves: Sequence[Leaf]) -> dict[tuple[int, int], int]:
    """In which order the steps of a leaf are taken, as they are all estimated alike."""
    costs = problem.step_costs
    rates = [
        leaf.weight / math.fsum(costs[s, 0] - costs[s, leaf.level] for s in leaf.steps)
        for leaf in leaves
    ]
    positions = {}
    for i, leaf in enumerate(leaves):
        before = rates[i - 1] if i and leaves[i - 1].level == leaf.level else math.inf
        after = i + 1 < len(leaves) and leaves[i + 1].level == leaf.level
        backwards = after and rates[i + 1] < before
        for step in leaf.steps:
            positions[step, leaf.level] = -step if backwards else step
    return positions
