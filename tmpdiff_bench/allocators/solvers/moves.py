"""Small changes of plans: dearer and cheaper levels of a step, and plans drawn at random."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tmpdiff_bench.allocators.base import AllocationProblem, Choice
from tmpdiff_bench.allocators.oracle import Oracle

_TRIES = 20  # plans in a row that were known before there is taken to be no other


def ladders(problem: AllocationProblem) -> list[list[int]]:
    """The levels worth having at each step, dearest first: the reference, and those that cost less.

    Of levels that cost the same only the one named first is kept, so each rung saves something.
    """
    found = []
    for costs in problem.step_costs:
        different, first = np.unique(costs, return_index=True)
        found.append([0, *first[different < costs[0]][::-1].tolist()])
    return found


def changed(choice: Sequence[int], step: int, level: int) -> Choice:
    """The same choice with one step at another level."""
    return (*choice[:step], level, *choice[step + 1 :])


def next_rungs(
    problem: AllocationProblem, rungs: Sequence[Sequence[int]], choice: Choice, by: int
) -> Iterator[tuple[int, Choice, float]]:
    """Every step that can go to the next rung of its ladder, cheaper (`by` 1) or dearer (-1): the
    step, the choice then, and what that adds to its cost.
    """
    for step, levels in enumerate(rungs):
        place = levels.index(choice[step]) + by
        if 0 <= place < len(levels):
            costs = problem.step_costs[step]
            added = float(costs[levels[place]] - costs[choice[step]])
            yield step, changed(choice, step, levels[place]), added


def unseen(oracle: Oracle, draw: Callable[[], Choice]) -> Iterator[Choice]:
    """Plans drawn that were not measured before, until no evaluation is left or none seems to be
    new.
    """
    tries = 0
    while oracle.left > 0 and tries < _TRIES:
        choice = draw()
        tries = tries + 1 if oracle.has(choice) else 0
        if not tries:
            yield choice


def random_plan(
    problem: AllocationProblem,
    rungs: Sequence[Sequence[int]],
    rng: np.random.Generator,
    start: Sequence[int] | None = None,
) -> Choice:
    """A plan within the budget that no single step could leave to a dearer rung of its ladder.

    From `start` (default: a random plan), random steps are lowered until the plan fits, then
    steps are raised in random order as far as the budget goes.
    """
    if start is None:
        start = [int(rng.choice(levels)) for levels in rungs]
    choice = tuple(
        level if level in levels else levels[0] for level, levels in zip(start, rungs, strict=True)
    )
    for lowest in (False, True):  # where any cheaper levels saved too little, the cheapest
        for step in rng.permutation(problem.steps).tolist():
            if problem.within(choice):
                break
            if below := rungs[step][rungs[step].index(choice[step]) + 1 :]:
                choice = changed(choice, step, below[-1] if lowest else int(rng.choice(below)))
        if problem.within(choice):
            break
    for step in rng.permutation(problem.steps).tolist():
        for level in rungs[step][: rungs[step].index(choice[step])]:
            higher = changed(choice, step, level)
            if problem.within(higher):
                choice = higher
                break
    return choice
