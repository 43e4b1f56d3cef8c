"""Genetic search."""

from __future__ import annotations

import numpy as np

from tmpdiff_bench.allocators.base import Allocation, AllocationProblem, Choice
from tmpdiff_bench.allocators.options import number, seeded, whole
from tmpdiff_bench.allocators.oracle import Oracle, cited, declares
from tmpdiff_bench.allocators.solvers.moves import ladders, random_plan, unseen


@declares(evaluations=lambda steps, levels: max(1, 4 * steps * (levels - 1)))
def evolutionary(
    problem: AllocationProblem,
    *,
    max_evaluations: int | None = None,
    population: int = 16,
    mutation: float = 0.1,
    rng: int | np.random.Generator = 0,
) -> Allocation:
    """Breed plans: the best `population` plans measured so far are the parents of the next.

    Starts from random plans (at most half of the evaluations). A child takes every step from one of
    two parents (each the better of two drawn), changes each step with probability `mutation`, and
    is brought within the budget as random plans are. As OMS-DPM (Liu et al. 2023) and AutoDiffusion
    search schedules of models and of steps. At most `max_evaluations` (default 4S(L-1)).
    """
    population, mutation = whole("population", population, 2), number("mutation", mutation, 0, 1)
    generator, source, limit = seeded(rng), cited("liu2023omsdpm"), max_evaluations
    with Oracle(problem, "evolutionary", source, limit=limit, allocator=evolutionary) as oracle:
        ranked: list[tuple[float, Choice]] = []
        rungs, at_random = ladders(problem), min(population, max(oracle.left // 2, 1))

        def draw() -> Choice:
            if len(ranked) < at_random:
                return random_plan(problem, rungs, generator)
            child = _child(problem, ranked[:population], mutation, generator)
            return random_plan(problem, rungs, generator, child)

        for child in unseen(oracle, draw):
            ranked.append((oracle(child), child))
            ranked.sort()
        return oracle.allocation(oracle.best())


def _child(
    problem: AllocationProblem,
    parents: list[tuple[float, Choice]],
    mutation: float,
    rng: np.random.Generator,
) -> list[int]:
    """Cross two parents (ranked, best first), and mutate."""
    first, second = (parents[int(rng.integers(len(parents), size=2).min())][1] for _ in range(2))
    taken = np.where(rng.random(problem.steps) < 0.5, first, second)
    drawn = rng.integers(len(problem.levels), size=problem.steps)
    child: list[int] = np.where(rng.random(problem.steps) < mutation, drawn, taken).tolist()
    return child
