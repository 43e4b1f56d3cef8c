"""Making a quadratic form over binary variables convex without changing its values.

Of every step at most one cell is 1. So x_i² = x_i, and products of two cells of one step vanish:
for any d and any v on those pairs, x'Gx = x'(G - M)x + d'x with M = diag(d) + v. Where G - M is
positive semidefinite, minimising over fractional x bounds the minimum from below; the best (d, v)
makes this bound that of a semidefinite program (Billionnet, Elloumi and Plateau 2009).
"""

from __future__ import annotations

from dataclasses import dataclass

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
