"""Lower bounds of a convex form over fractional plans within a budget, for many nodes at once.

Arrays are (B, L, S): nodes, levels (0 the reference, whose cells carry no error), steps. A node is
a mask of the levels that each step may still take.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from tmpdiff_bench.allocators.base import Floats

Indices = NDArray[np.int64]
_SHRINK = 0.25  # of the barrier's weight between two Newton steps
_BARRIER_END = 1e-6
_NEWTON_STEPS = 60
_MARGIN = 1e-10  # of the largest eigenvalue: keeps the form convex in floating point too


@dataclass(frozen=True, eq=False)
class ConvexForm:
    """x'Hx + d'x, equal to x'Gx wherever x is binary with at most one cell a step; H is PSD."""

    matrix: Floats
    linear: Floats


def pairs_of_steps(steps: int, cells: int) -> tuple[Indices, Indices]:
    """Pairs (i < j) of cells that belong to one step; cells are ordered by level, then step."""
    first, second = np.triu_indices(cells, 1)
    same = first % steps == second % steps
    return first[same], second[same]


def convex_form(gram: Floats, steps: int, weights: Floats, products: Floats) -> ConvexForm:
    """The form with the largest Σ weights d - 2 Σ products v, by Newton steps on a log barrier.

    `weights` (K,): more than x - x² of the fractional solution x that is to be cut off; `products`
    x_i x_j of the pairs of `pairs_of_steps` (others than of some x can make it unbounded). Works
    for any symmetric `gram`, definite or not.
    """
    cells = len(gram)
    first, second = pairs_of_steps(steps, cells)
    p, q = np.r_[np.arange(cells), first], np.r_[np.arange(cells), second]
    share = np.where(p == q, 0.5, 1.0)
    gain = np.r_[weights, -2 * products]

    def shifted(values: Floats) -> Floats:
        form = gram.copy()
        form[p, q] -= 2 * share * values * np.where(p == q, 1.0, 0.5)
        form[q, p] = form[p, q]
        return form

    scale = max(float(np.abs(np.linalg.eigvalsh(gram)).max()), 1e-300)
    values = np.zeros(len(p))
    values[:cells] = min(float(np.linalg.eigvalsh(gram)[0]), 0.0) - 0.05 * scale
    barrier = float(gain[:cells].sum()) * scale / cells
    end = barrier * _BARRIER_END
    before = values
    for _ in range(_NEWTON_STEPS):
        try:
            inverse = np.linalg.inv(shifted(values))
        except np.linalg.LinAlgError:  # the last step went to the border; before it is good enough
            values = before
            break
        slope = gain - barrier * 2 * share * inverse[p, q]
        one, two = inverse[np.ix_(p, p)], inverse[np.ix_(q, q)]
        three = inverse[np.ix_(p, q)]
        curvature = 2 * barrier * np.outer(share, share) * (one * two + three * three.T)
        curvature[np.diag_indices(len(p))] *= 1 + 1e-12
        step = np.linalg.solve(curvature, slope)
        length = 1.0
        while length > 1e-9 and not _is_definite(shifted(values + length * step)):
            length /= 2
        if length <= 1e-9:
            break
        before, values = values, values + (0.9 if length < 1 else 1.0) * length * step
        if length == 1:
            if barrier <= end:
                break
            barrier *= _SHRINK
    form = shifted(values)
    least = float(np.linalg.eigvalsh(form)[0])
    lift = max(_MARGIN * scale - least, 0.0)
    form[np.diag_indices(cells)] += lift
    return ConvexForm(form, values[:cells] - lift)


def _is_definite(form: Floats) -> bool:
    try:
        np.linalg.cholesky(form)
    except np.linalg.LinAlgError:
        return False
    return True


Masks = NDArray[np.bool_]
_BISECTIONS = 24
_DOUBLINGS = 12


class Relaxation:
    """min x'Hx + d'x over x with Σ_l x_ls = 1, x >= 0 and total cost <= budget.

    `costs` (L, S). The fractional minimum is approached by a primal-dual gradient method (Condat
    2013, Vu 2013) with a step size per step of the plan; the bound is the Lagrange dual of the
    form's tangent, which holds at any x, so an x that has not converged only weakens it.
    """

    def __init__(self, form: ConvexForm, costs: Floats, budget: float) -> None:
        self.form, self.costs, self.budget = form, costs, budget
        self._levels, self._steps = costs.shape
        # 1/size dominates 2H, as every row sum of absolute values is at most 1/size
        rows = np.abs(2 * form.matrix).sum(axis=1).reshape(-1, self._steps).max(axis=0)
        self._size = 0.5 / np.maximum(rows, np.finfo(float).tiny)
        norm = float(np.square(costs).max(axis=0) @ self._size)
        self._dual_size = 0.25 / max(norm, np.finfo(float).tiny)

    def minimise(
        self, x: Floats, price: Floats, masks: Masks, rounds: int
    ) -> tuple[Floats, Floats]:
        """Improve fractional plans and the prices (B,) of cost by some rounds."""
        x = self._project(x, masks)
        for _ in range(rounds):
            slope = self._slope(x) + price[:, None, None] * self.costs
            moved = self._project(x - self._size * slope, masks)
            excess = np.einsum("bls,ls->b", 2 * moved - x, self.costs) - self.budget
            price = np.maximum(price + self._dual_size * excess, 0.0)
            x = moved
        return x, price

    def bounds(self, x: Floats, price: Floats, masks: Masks) -> tuple[Floats, Floats]:
        """Bounds from the tangents at x: f(y) >= f(x) + f'(x)(y - x) as H is definite.

        `least` (B,) bounds the form over a node from below; so does `least + extra` (`extra`
        (B, L, S), infinite outside the mask) over its plans that take a level at a step.
        """
        slope = self._slope(x)
        low = x[:, 1:].reshape(len(x), -1)
        constant = -np.einsum("bk,bk->b", low @ self.form.matrix, low)
        slope = np.where(masks, slope, np.inf)
        price = self._best_price(slope, price)
        priced = slope + price[:, None, None] * self.costs
        least = priced.min(axis=1)
        total = constant + least.sum(axis=1) - price * self.budget
        return total, priced - least[:, None]

    def _slope(self, x: Floats) -> Floats:
        slope = np.zeros_like(x)
        low = x[:, 1:].reshape(len(x), -1)
        slope[:, 1:] = (2 * (low @ self.form.matrix) + self.form.linear).reshape(x[:, 1:].shape)
        return slope

    def _best_price(self, slope: Floats, price: Floats) -> Floats:
        """The price of cost that makes the dual largest, by bisection on the cost of its plan."""
        columns = np.arange(self._steps)

        def too_dear(price: Floats) -> Masks:
            chosen = (slope + price[:, None, None] * self.costs).argmin(axis=1)
            return cast(Masks, self.costs[chosen, columns].sum(axis=1) > self.budget)

        low, high = np.zeros(len(slope)), np.maximum(2 * price, 1e-9)
        for _ in range(_DOUBLINGS):
            over = too_dear(high)
            if not over.any():
                break
            low, high = np.where(over, high, low), np.where(over, 4 * high, high)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            over = too_dear(middle)
            low, high = np.where(over, middle, low), np.where(over, high, middle)
        return np.where(too_dear(np.zeros(len(slope))), high, 0.0)

    def _project(self, y: Floats, masks: Masks) -> Floats:
        """The nearest x of each simplex (Michelot 1986): at most L rounds."""
        active = masks
        for _ in range(self._levels):
            total = np.where(active, y, 0.0).sum(axis=1) - 1
            threshold = (total / active.sum(axis=1))[:, None]
            active = active & (y > threshold)
        return np.where(active, y - threshold, 0.0)
