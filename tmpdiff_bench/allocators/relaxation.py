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
from tmpdiff_bench.allocators.convex import ConvexForm

Masks = NDArray[np.bool_]
_BISECTIONS = 24
_DOUBLINGS = 12


@dataclass(frozen=True, eq=False)
class Bounds:
    """Of B nodes: `least` (B,) bounds the form over the node from below; so does `least + extra`
    (`extra` (B, L, S), infinite outside the mask) over its plans that take a level at a step.
    """

    least: Floats
    extra: Floats


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

    def bounds(self, x: Floats, price: Floats, masks: Masks) -> Bounds:
        """Bounds from the tangents at x: f(y) >= f(x) + f'(x)(y - x) as H is definite."""
        slope = self._slope(x)
        low = x[:, 1:].reshape(len(x), -1)
        constant = -np.einsum("bk,bk->b", low @ self.form.matrix, low)
        slope = np.where(masks, slope, np.inf)
        price = self._best_price(slope, price)
        priced = slope + price[:, None, None] * self.costs
        least = priced.min(axis=1)
        total = constant + least.sum(axis=1) - price * self.budget
        return Bounds(cast(Floats, total), cast(Floats, priced - least[:, None]))

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
