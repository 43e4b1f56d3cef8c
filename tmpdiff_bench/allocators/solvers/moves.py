"""Small changes of plans: dearer and cheaper levels of a step, and plans drawn at random."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tmpdiff_bench.allocators.base import AllocationProblem, Choice


def ladder(problem: AllocationProblem, step: int) -> list[int]:
    """The levels worth having at a step, dearest first: the reference, and those that cost less.

    Of levels that cost the same only the one named first is kept, so each rung saves something.
    """
    costs = problem.step_costs[step]
    rungs: list[int] = []
    for level in sorted(range(len(costs)), key=lambda level: (-costs[level], level)):
        if costs[level] <= costs[0] and (not rungs or costs[level] < costs[rungs[-1]]):
            rungs.append(level)
    return [0, *(level for level in rungs if costs[level] < costs[0])]


def changed(choice: Sequence[int], step: int, level: int) -> Choice:
    """The same choice with one step at another level."""
    return (*choice[:step], level, *choice[step + 1 :])


def random_plan(
    problem: AllocationProblem, rng: np.random.Generator, start: Sequence[int] | None = None
) -> Choice:
    """A plan within the budget that no single step could leave to a dearer rung of its ladder.

    From `start` (default: a random plan), random steps are lowered until the plan fits, then
    steps are raised in random order as far as the budget goes.
    """
    rungs = [ladder(problem, step) for step in range(problem.steps)]
    if start is None:
        start = [int(rng.choice(levels)) for levels in rungs]
    choice = tuple(
        level if level in levels else levels[0] for level, levels in zip(start, rungs, strict=True)
    )
    for step in rng.permutation(problem.steps).tolist():
        if problem.fits(problem.cost(choice)):
            break
        below = rungs[step][rungs[step].index(choice[step]) + 1 :]
        if below:
            choice = changed(choice, step, int(rng.choice(below)))
    if not problem.fits(problem.cost(choice)):  # still over: every step was lowered, but too little
        choice = _lowered(problem, choice, rungs, rng)
    return _raised(problem, choice, rungs, rng)


def _lowered(
    problem: AllocationProblem, choice: Choice, rungs: list[list[int]], rng: np.random.Generator
) -> Choice:
    for step in rng.permutation(problem.steps).tolist():
        if problem.fits(problem.cost(choice)):
            break
        choice = changed(choice, step, rungs[step][-1])
    return choice


def _raised(
    problem: AllocationProblem, choice: Choice, rungs: list[list[int]], rng: np.random.Generator
) -> Choice:
    for step in rng.permutation(problem.steps).tolist():
        for level in rungs[step][: rungs[step].index(choice[step])]:
            higher = changed(choice, step, level)
            if problem.fits(problem.cost(higher)):
                choice = higher
                break
    return choice
