"""The multiple-choice knapsack: one level per step, least sum of errors within a budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from tmpdiff_bench.allocators.base import AllocationProblem, Choice, Floats, along, forgiving

_MAX_STATES = 3_000_000  # partial plans held in all: some seconds
_SLACK = 1e-12  # relative: sums in another order differ by less


def cheapest_choice(
    problem: AllocationProblem, errors: Floats, *, max_states: int = _MAX_STATES
) -> tuple[Choice, float, float]:
    """Minimise Σ errors[s, l] (S, L) within the problem's budget.

    Returns plan, sum, and a bound that no plan's sum is below: equal to the sum where it is proven
    least. Infinite errors are levels that a step may not take; a plan without them must fit.

    Exact whatever the range of costs and errors, by lists of undominated partial plans (Nemhauser
    and Ullmann 1969), cut by the bound of the linear relaxation. Where they outgrow `max_states`,
    every list is cut down to the partial plans of least bound, over all and per stretch of cost;
    the least bound of those cut off then bounds the optimum.
    """
    hulls = [_hull(row, cost) for row, cost in zip(errors, problem.step_costs, strict=True)]
    limit = forgiving(problem.budget)
    order = np.argsort([-hull[0, 0] + hull[-1, 0] for hull in hulls], kind="stable")
    choice = _filled(problem, hulls)
    least = float(_Front.of(hulls, _moves(hulls)[0]).least(np.array([limit]))[0])
    total = along(errors, choice)
    if total <= least:
        return choice, total, total
    found, cut_off = _listed(errors, problem.step_costs, hulls, order, limit, total, max_states)
    if found is not None and problem.within(found) and along(errors, found) < total:
        choice, total = found, along(errors, found)
    return choice, total, max(min(cut_off, total), min(least, total), 0.0)


def _hull(errors: Floats, costs: Floats) -> Floats:
    """The lower convex hull of a step's (cost, error, level), cheapest first, errors falling."""
    rows = sorted((c, e, level) for level, (c, e) in enumerate(zip(costs, errors, strict=True)))
    hull: list[tuple[float, float, int]] = []
    for cost, error, level in rows:
        if not math.isfinite(error) or (hull and error >= hull[-1][1]):
            continue
        if hull and cost == hull[-1][0]:
            hull.pop()
        while len(hull) > 1 and (hull[-1][1] - error) * (hull[-1][0] - hull[-2][0]) >= (
            hull[-2][1] - hull[-1][1]
        ) * (cost - hull[-1][0]):
            hull.pop()
        hull.append((cost, error, level))
    return np.array(hull, dtype=np.float64)


def _moves(hulls: Sequence[Floats]) -> tuple[Floats, NDArray[np.int64]]:
    """Moves along the hulls of steps, the most error per cost first: what each adds to (cost,
    error), and its (step, place on the hull).
    """
    moves = np.concatenate([np.diff(hull[:, :2], axis=0) for hull in hulls])
    places = [(step, place) for step, hull in enumerate(hulls) for place in range(len(hull) - 1)]
    slopes = moves[:, 1] / np.maximum(moves[:, 0], np.finfo(float).tiny)
    order = np.argsort(slopes, kind="stable")
    return moves[order], np.array(places, dtype=np.int64).reshape(-1, 2)[order]


@dataclass(frozen=True, eq=False)
class _Front:
    """Least error of the linear relaxation of some steps: corners of a convex curve that falls."""

    costs: Floats
    errors: Floats

    @classmethod
    def of(cls, hulls: Sequence[Floats], moves: Floats) -> Self:
        """The front of some steps by their hulls and the moves along these."""
        # summed from the small ends up: what is small must not vanish beside what is large
        costs = np.cumsum(np.r_[math.fsum(hull[0, 0] for hull in hulls), moves[:, 0]])
        errors = np.cumsum(np.r_[math.fsum(hull[-1, 1] for hull in hulls), -moves[::-1, 1]])
        return cls(costs, errors[::-1])

    def least(self, costs: Floats) -> Floats:
        """Bounds of the error within costs, rounding taken off."""
        left = np.clip(np.searchsorted(self.costs, costs, side="right") - 1, 0, None)
        return np.asarray(np.interp(costs, self.costs, self.errors) - _SLACK * self.errors[left])


def _filled(problem: AllocationProblem, hulls: list[Floats]) -> Choice:
    """The relaxation's plan with its fraction left out, and what else fits in that order."""
    choice = [int(hull[0, 2]) for hull in hulls]
    places = [0] * len(hulls)
    for step, place in _moves(hulls)[1].tolist():
        if places[step] != place:
            continue
        before = choice[step]
        choice[step] = int(hulls[step][place + 1, 2])
        if problem.within(choice):
            places[step] = place + 1
        else:
            choice[step] = before
    return tuple(choice)


def _listed(
    errors: Floats,
    costs: Floats,
    hulls: list[Floats],
    order: NDArray[np.int64],
    limit: float,
    below: float,
    max_states: int,
) -> tuple[Choice | None, float]:
    """Lists of undominated partial plans over the steps in `order`: their best plan, None if none
    is below `below`; and a bound of those cut off, infinite where none was.

    A list may take a quarter of what is left of `max_states`, or its even share of all.
    """
    hulls = [hulls[step] for step in order]
    moves, places = _moves(hulls)
    cost, error, history, held, cut_off = np.zeros(1), np.zeros(1), [], 0, math.inf
    for number, step in enumerate(order):
        levels = np.flatnonzero(np.isfinite(errors[step]))
        all_costs = np.add.outer(costs[step, levels], cost).ravel()
        all_errors = np.add.outer(errors[step, levels], error).ravel()
        keep = np.lexsort((all_errors, all_costs))
        # strictly better than all that cost less
        least = np.minimum.accumulate(all_errors[keep])
        keep = keep[np.r_[True, all_errors[keep][1:] < least[:-1]]]
        if number + 1 < len(order):
            front = _Front.of(hulls[number + 1 :], moves[places[:, 0] > number])
            room = limit * (1 + _SLACK) - all_costs[keep]
            bound = all_errors[keep] + front.least(room)
            open_ = (room >= front.costs[0] * (1 - _SLACK)) & (bound <= below * (1 + _SLACK))
            keep, bound = keep[open_], bound[open_]
            width = max((max_states - held) // 4, max_states // len(order), 1)
            if len(keep) > width:
                kept = _spread(bound, width)
                cut_off = min(cut_off, float(bound[~kept].min()) * (1 - _SLACK))
                keep = keep[kept]
        else:
            keep = keep[all_costs[keep] <= limit]
        held += len(keep)
        if not len(keep):
            return None, cut_off
        history.append((keep % len(cost), levels[keep // len(cost)]))
        cost, error = all_costs[keep], all_errors[keep]
    place, choice = int(error.argmin()), np.zeros(len(order), dtype=np.int64)
    for step, (parents, taken) in zip(order[::-1], reversed(history), strict=True):
        choice[step], place = taken[place], parents[place]
    return tuple(choice.tolist()), cut_off


def _spread(bound: Floats, width: int) -> NDArray[np.bool_]:
    """Mark at most `width` of some partial plans, sorted by cost: half are those of least bound,
    half the least of as many stretches of cost, for bounds alone favour one end of it.
    """
    kept = np.zeros(len(bound), dtype=np.bool_)
    kept[np.argsort(bound, kind="stable")[: width - width // 2]] = True
    stretch = np.arange(len(bound)) * (width // 2) // len(bound)
    by_stretch = np.lexsort((bound, stretch))
    kept[by_stretch[np.r_[True, np.diff(stretch[by_stretch]) > 0]][: width // 2]] = True
    return kept
