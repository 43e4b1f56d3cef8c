"""The least s'Gs within a budget: branch and bound on a convex reformulation."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from tmpdiff_bench.allocators.base import Choice, Floats, forgiving
from tmpdiff_bench.allocators.solvers.halves import (
    MAX_PLANS,
    exchange,
    least_of_all,
    plans_in,
    within_budget,
)
from tmpdiff_bench.allocators.solvers.relaxation import (
    Masks,
    Relaxation,
    convex_form,
    pairs_of_steps,
)

TOLERANCE = 1e-9  # relative, of the minimum: what is closer than that is taken for equal
_BATCH = 128
_MOST_ROUNDS, _CELLS_PER_ROUND = 10, 12  # small problems are quicker searched than bounded
_ROOT_ROUNDS, _NODE_ROUNDS = 250, 40
_STARTS = 8
_AT_ONCE = 2**14  # plans that are quicker tried than bounded
_NOTHING = 1e-13  # of the largest entry: what rounding leaves of a form that is zero


@dataclass(frozen=True, eq=False)
class Solution:
    """The best plan found, its `value` s'Gs, and a `bound` that no plan within the budget is below
    (to 1e-9 of the value); equal where the optimum is proven.
    """

    choice: Choice
    value: float
    bound: float


class Weights:
    """What the reformulation cuts off: running means over fractional solutions x.

    `squares` (K,) of x - x², `products` of x_i x_j within steps. Handed from one budget to the
    next they save rounds.
    """

    def __init__(self, steps: int, cells: int) -> None:
        self._first, self._second = pairs_of_steps(steps, cells)
        self.squares, self.products = np.full(cells, 0.25), np.full(len(self._first), 0.05)
        self._rounds = 0

    def add(self, x: Floats) -> None:
        """Take in another fractional solution x (K,)."""
        self._rounds += 1
        share = 1 / (self._rounds + 0.5)
        self.squares = self.squares + share * (np.clip(x - x * x, 0, 1) - self.squares)
        within = x[self._first] * x[self._second]
        self.products = self.products + share * (within - self.products)


@dataclass(order=True, slots=True)
class _Node:
    bound: float
    number: int
    mask: Masks = field(compare=False)
    x: Floats = field(compare=False)
    price: float = field(compare=False)


def least_quadratic(
    gram: Floats,
    step_costs: Floats,
    budget: float,
    *,
    max_nodes: int,
    max_plans: int = MAX_PLANS,
    rounds: int | None = None,
    weights: Weights | None = None,
    starts: Iterable[Choice] = (),
) -> Solution:
    """Minimise s'Gs over plans whose cost is within the budget.

    `gram` (K, K) symmetric, definite or not, cells by level, then step; `step_costs` (S, L). The
    root takes `rounds` (default: by size, up to 10) of: reformulate (`convex_form`) for the
    fractional solutions so far, solve the relaxation. Fictitious play of the two approaches the
    bound of a semidefinite program. Then best-first search: nodes are bounded in batches, levels
    whose bound is too high are struck out, and the step whose rounding costs most is branched on.
    Ends when no node is left, or after `max_nodes`: a number and not a time, so results repeat.
    Bounds can't tell plans apart that are nearly equal, so where the search has not ended and there
    are at most `max_plans`, each of them is tried (`halves`).

    `starts` are plans known to be good; `weights` are used and updated.
    """
    steps = len(step_costs)
    scale = float(np.abs(gram).max(initial=0.0)) or 1.0
    unit = float(step_costs.max()) or 1.0
    gram, costs = gram / scale, np.ascontiguousarray(step_costs.T) / unit
    limit = forgiving(budget) / unit
    search = _Incumbent(gram, costs, limit)
    for choice in (tuple(costs.argmin(axis=0).tolist()), (0,) * steps, *starts):
        search.offer(choice)
    definite = len(gram) == 0 or np.linalg.eigvalsh(gram)[0] >= -_NOTHING

    def solution(bound: float) -> Solution:
        if definite and search.value <= steps * np.finfo(float).eps:  # left by the scaling
            return Solution(search.choice, 0.0, 0.0)
        return Solution(search.choice, search.value * scale, min(bound, search.value) * scale)

    if definite and search.value <= _NOTHING:
        return Solution(search.choice, 0.0, 0.0)
    everything = np.ones(costs.shape, dtype=np.bool_)
    if plans_in(everything) <= min(max_plans, _AT_ONCE):
        search.try_all(everything)
        return solution(search.value)
    if weights is None:
        weights = Weights(steps, len(gram))
    if rounds is None:
        rounds = min(_MOST_ROUNDS, 2 + len(gram) // _CELLS_PER_ROUND)
    relaxation, root = _root(gram, costs, limit, weights, rounds, search)
    bound = _search(relaxation, root, search, max_nodes)
    if bound < search.goal and plans_in(root.mask) <= max_plans:
        search.try_all(root.mask)
        bound = search.value
    return solution(bound)


class _Incumbent:
    """The best plan so far; plans offered are first improved by exchanges of one or two steps."""

    def __init__(self, gram: Floats, costs: Floats, limit: float) -> None:
        levels, steps = costs.shape
        self.form = np.zeros((levels * steps, levels * steps))
        self.form[steps:, steps:] = gram
        self.costs, self.limit = costs, limit
        self.choice: Choice = ()
        self.value = math.inf

    @property
    def goal(self) -> float:
        """A node whose bound is not below this holds nothing better."""
        return self.value - TOLERANCE * abs(self.value)

    def offer(self, choice: Iterable[int]) -> None:
        choice = within_budget(np.array(tuple(choice)), self.costs, self.limit)
        choice = exchange(self.form, self.costs, self.limit, choice)
        cells = choice * self.costs.shape[1] + np.arange(self.costs.shape[1])
        value = float(self.form[np.ix_(cells, cells)].sum())
        if value < self.value:
            self.value, self.choice = value, tuple(choice.tolist())

    def try_all(self, mask: Masks) -> None:
        """Go through all plans of a mask (L, S)."""
        better, value = least_of_all(self.form, self.costs, self.limit, mask, self.value)
        if better is not None:
            self.value, self.choice = value, better


def _root(
    gram: Floats, costs: Floats, limit: float, weights: Weights, rounds: int, search: _Incumbent
) -> tuple[Relaxation, _Node]:
    """The reformulation with the best bound of some rounds, and the root node under it."""
    levels, steps = costs.shape
    mask = np.ones((1, levels, steps), dtype=np.bool_)
    x, price = np.full(mask.shape, 1 / levels), np.full(1, 0.01)
    best: tuple[Relaxation, _Node] | None = None
    for _ in range(rounds):
        floor = 0.01 * max(float(weights.squares.max()), 0.01)
        form = convex_form(gram, steps, weights.squares + floor, weights.products)
        relaxation = Relaxation(form, costs, limit)
        x, price = relaxation.minimise(x, price, mask, _ROOT_ROUNDS)
        bound = float(relaxation.bounds(x, price, mask)[0][0])
        if best is None or bound > best[1].bound:
            best = relaxation, _Node(bound, 0, mask[0], x[0], float(price[0]))
        weights.add(x[0, 1:].ravel())
        if bound >= search.goal:
            break
    assert best is not None, "at least one round"
    rng = np.random.default_rng(0)
    for trial in range(_STARTS):
        noise = 0.4 * rng.random(x[0].shape) if trial else 0.0
        search.offer((best[1].x + noise).argmax(axis=0))
    return best


def _search(relaxation: Relaxation, root: _Node, search: _Incumbent, max_nodes: int) -> float:
    """Best-first search; returns the bound reached."""
    heap, numbers, nodes = [root], itertools.count(1), 0
    while heap and nodes < max_nodes:
        taken = [heapq.heappop(heap) for _ in range(min(_BATCH, len(heap), max_nodes - nodes))]
        batch = [node for node in taken if node.bound < search.goal]
        if not batch:
            return search.value
        nodes += len(batch)
        masks = np.array([node.mask for node in batch])
        x, price = relaxation.minimise(
            np.array([node.x for node in batch]),
            np.array([node.price for node in batch]),
            masks,
            _NODE_ROUNDS,
        )
        own, extra = relaxation.bounds(x, price, masks)
        least = np.maximum(own, [node.bound for node in batch])
        search.offer(extra[int(least.argmin())].argmin(axis=0))
        # what a level adds, it adds to the node's own bound, which its parent's may be above
        below = np.maximum(own[:, None, None] + extra, least[:, None, None])
        masks &= below < search.goal
        for i in np.flatnonzero((least < search.goal) & np.all(masks.any(axis=1), axis=1)):
            for mask, bound in _children(relaxation, masks[i], x[i], below[i], search):
                heapq.heappush(heap, _Node(bound, next(numbers), mask, x[i], float(price[i])))
    return min((node.bound for node in heap), default=search.value)


def _children(
    relaxation: Relaxation, mask: Masks, x: Floats, below: Floats, search: _Incumbent
) -> Iterable[tuple[Masks, float]]:
    """Split a node at the step where rounding x costs the reformulation most."""
    free = mask.sum(axis=0) > 1
    if not free.any():
        search.offer(mask.argmax(axis=0))
        return
    linear = np.maximum(relaxation.form.linear, 0.0).reshape(x[1:].shape)
    loss = (linear * x[1:] * (1 - x[1:])).sum(axis=0)
    step = int(np.where(free, loss, -1.0).argmax())
    for level in np.flatnonzero(mask[:, step]):
        child = mask.copy()
        child[:, step] = False
        child[level, step] = True
        cheapest = np.where(child, relaxation.costs, np.inf).min(axis=0).sum()
        bound = float(below[level, step])
        if bound < search.goal and cheapest <= relaxation.budget * (1 + 1e-12):
            yield child, bound
