"""The least s'Gs within a budget by going through every plan, half of the steps at a time.

With the plan cut into two halves a and b, s'Gs = q(a) + q(b) + a linear form of b that depends on
a; so all b are tried for one a by a few additions of arrays (Horowitz and Sahni 1974 cut knapsacks
so). A thousand million plans take seconds, whatever the form.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tmpdiff_bench.allocators.base import Choice, Floats

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


MAX_PLANS = 2**30
_BISECTIONS = 12


def plans_in(mask: NDArray[np.bool_]) -> int:
    """How many plans take only levels of a mask (L, S)."""
    return math.prod(mask.sum(axis=0).tolist())


def least_of_all(
    form: Floats, costs: Floats, limit: float, mask: NDArray[np.bool_], below: float
) -> tuple[Choice | None, float]:
    """The plan of a mask (L, S) with the least s'Gs under `below`, and that; None if there is none.

    `form` (L S, L S) with rows by level, then step, those of the reference zero; `costs` (L, S).
    Exact up to rounding.
    """
    steps = mask.shape[1]
    cells = [(np.flatnonzero(mask[:, s]) * steps + s).tolist() for s in range(steps)]  # by step
    middle = _middle([len(found) for found in cells])
    a, b = _choices(cells[:middle]), _choices(cells[middle:])
    a_cost, b_cost = costs.ravel()[a].sum(axis=1), costs.ravel()[b].sum(axis=1)
    a_value, b_value = _values(form, a), _values(form, b)
    pull = 2 * np.stack([form[taken].sum(axis=0) for taken in a])  # (A, L S): what a adds to cells

    by_cost = np.argsort(b_cost, kind="stable")
    least_so_far = np.minimum.accumulate(b_value[by_cost])
    affordable = np.searchsorted(b_cost[by_cost], limit - a_cost, side="right")
    bound = a_value + np.where(affordable, least_so_far[affordable - 1], np.inf)
    bound += _least_linear(pull, costs, mask, range(middle, steps), limit - a_cost)

    values = np.full(len(b), np.inf)  # infinite for those b that a leaves no cost for
    table, known, best = np.empty(len(b)), 0, (below, -1, -1)
    for index in np.argsort(affordable, kind="stable").tolist():
        if bound[index] >= best[0]:
            continue
        new = by_cost[known : affordable[index]]
        values[new], known = b_value[new], int(affordable[index])
        _add_up(pull[index].tolist(), cells[middle:][::-1], table)
        table += values
        value = float(table.min()) + float(a_value[index])
        if value < best[0]:
            best = value, index, int(table.argmin())
    value, i, j = best
    if i < 0:
        return None, below
    return tuple((np.concatenate([a[i], b[j]]) // steps).tolist()), value


def _add_up(pull: Sequence[float], cells: Sequence[Sequence[int]], table: Floats) -> None:
    """The linear form of every choice of levels, into `table` in lexical order.

    `cells` of every step, the last step first: each step makes as many copies of what is there as
    it has levels, which is all additions of contiguous arrays.
    """
    table[0], size = 0.0, 1
    for first, *others in cells:
        for place, cell in enumerate(others, 1):
            np.add(table[:size], pull[cell], out=table[place * size : (place + 1) * size])
        if pull[first]:
            table[:size] += pull[first]
        size *= 1 + len(others)


def _least_linear(
    pull: Floats, costs: Floats, mask: NDArray[np.bool_], steps: range, left: Floats
) -> Floats:
    """Below the linear forms `pull` (A, L S) of all choices at some steps that cost at most `left`
    (A,): the Lagrange dual, with the best price of cost by bisection.
    """
    levels, count = mask.shape
    slope = np.where(mask[:, steps], pull.reshape(-1, levels, count)[:, :, steps], np.inf)
    cost = costs[:, steps]

    def dual(price: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        priced = slope + price[:, None, None] * cost
        chosen = priced.argmin(axis=1)
        value = np.take_along_axis(priced, chosen[:, None], axis=1).sum(axis=(1, 2))
        return value - price * left, cost[chosen, np.arange(len(steps))].sum(axis=1) > left

    low = np.zeros(len(pull))
    high = low + 4 * float(np.abs(pull).max(initial=0.0)) / (float(np.ptp(cost)) or 1.0)
    best, _ = dual(low)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        value, over = dual(middle)
        best = np.maximum(best, value)  # any price gives a bound
        low, high = np.where(over, middle, low), np.where(over, high, middle)
    return best


def _middle(sizes: Sequence[int]) -> int:
    """Where to cut a sequence so that the products of both parts are as equal as can be."""
    logs = np.log(sizes)
    sums = np.concatenate([[0.0], np.cumsum(logs)])
    return int(np.abs(2 * sums - sums[-1]).argmin())


def _choices(cells: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Every choice of one cell a step, in lexical order (N, steps)."""
    count = math.prod(map(len, cells))
    return np.array(list(itertools.product(*cells)), dtype=np.int64).reshape(count, len(cells))


def _values(form: Floats, cells: NDArray[np.int64]) -> Floats:
    """The form of rows of cells."""
    total = np.zeros(len(cells))
    for i, j in itertools.product(range(cells.shape[1]), repeat=2):
        total += form[cells[:, i], cells[:, j]]
    return total
