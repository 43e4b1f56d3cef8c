"""Problems of all kinds, for the contract suite; their optima by brute force."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from tmpdiff_bench.allocators.base import AllocationProblem, Floats, along
from tmpdiff_bench.plan import PrecisionPlan


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

    def summed(self, choice: tuple[int, ...]) -> float:
        """The sum of single errors, as they are given or measured."""
        total = []
        for step, level in enumerate(choice):
            single = [0] * len(choice)
            single[step] = level
            known = self.singles
            total.append(self.error(tuple(single)) if known is None else known[step, level])
        return math.fsum(total)

    def superposed(self, choice: tuple[int, ...]) -> float:
        """The root of s'Gs; for tasks with inner products."""
        assert self.gram is not None
        return _superposed(self.gram, choice)

    def optimum(self, predict: Callable[[tuple[int, ...]], float] | None = None) -> float:
        """The least error (or prediction) within the budget, by brute force."""
        problem, predict = self.problem(), predict or self.error
        steps, levels = self.costs.shape
        return min(
            predict(choice)
            for choice in itertools.product(range(levels), repeat=steps)
            if problem.within(choice)
        )

    def __str__(self) -> str:
        steps, levels = self.costs.shape
        return f"{self.kind} problem, S={steps}, L={levels}, budget {self.budget:.6g}"


def tasks(rng: np.random.Generator) -> Iterator[Task]:
    """Problems of all kinds, without end."""
    for kind in itertools.cycle(("additive", "superposed", "arbitrary", "equal", "unrecorded")):
        yield _task(kind, rng)


def _task(kind: str, rng: np.random.Generator) -> Task:
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

    def error(choice: tuple[int, ...]) -> float:
        if kind == "superposed":
            return _superposed(gram, choice)
        if kind == "arbitrary" and any(choice):
            return float(np.random.default_rng([key, *choice]).gamma(1.0))
        return along(singles, choice)

    recorded = (singles, gram) if kind in ("additive", "superposed") else (None, None)
    name = "additive" if kind in ("equal", "unrecorded") else kind
    return Task(name, costs, budget, error, *recorded)


def _superposed(gram: Floats, choice: tuple[int, ...]) -> float:
    """The root of s'Gs."""
    rows = [(level - 1) * len(choice) + step for step, level in enumerate(choice) if level]
    return math.sqrt(max(float(gram[np.ix_(rows, rows)].sum()), 0.0))
