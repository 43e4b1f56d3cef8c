"""Improving a plan under a quadratic form by changing one or two steps at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tmpdiff_bench.allocators.base import Floats

_SMALLEST_GAIN = 1e-13  # of the largest entry: less is rounding
_MAX_MOVES = 500


def within_budget(choice: NDArray[np.int64], costs: Floats, limit: float) -> NDArray[np.int64]:
    """Take steps to their cheapest level, those that save most first, until the cost fits."""
    choice, columns = choice.copy(), np.arange(len(choice))
    saved = costs[choice, columns] - costs.min(axis=0)
    for step in np.argsort(-saved, kind="stable"):
        if costs[choice, columns].sum() <= limit:
            break
        choice[step] = costs[:, step].argmin()
    return choice


def exchange(
    form: Floats, costs: Floats, limit: float, choice: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Make the change of one or two steps that lowers s'Gs most, until none does.

    `form` (L S, L S) with rows by level, then step, those of the reference zero; `costs` (L, S).
    """
    levels, steps = costs.shape
    to, at = np.repeat(np.arange(levels), steps), np.tile(np.arange(steps), levels)
    diagonal = np.diag(form)
    smallest = _SMALLEST_GAIN * float(np.abs(form).max(initial=0.0))
    same = at[:, None] == at[None]
    alone = np.diag_indices(len(form))
    for _ in range(_MAX_MOVES):
        cells = choice * steps + np.arange(steps)
        here = cells[at]  # the cell that a move to cell i gives up
        pull = form[:, cells].sum(axis=1)
        single = diagonal + diagonal[here] - 2 * form[np.arange(len(form)), here]
        single = single + 2 * (pull - pull[here])
        change = form - form[here] - form[:, here] + form[np.ix_(here, here)]
        change = single[:, None] + single[None] + 2 * change
        change[same] = np.inf
        change[alone] = single
        added = (costs.ravel() - costs[choice[at], at])[:, None]
        added = added + added.T
        added[alone] /= 2
        total = costs[choice, np.arange(steps)].sum()
        change[total + added > limit] = np.inf
        i, j = divmod(int(change.argmin()), len(form))
        if not change[i, j] < -smallest:
            break
        choice = choice.copy()
        choice[at[i]], choice[at[j]] = to[i], to[j]
    return choice
