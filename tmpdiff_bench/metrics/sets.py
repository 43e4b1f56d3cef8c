"""Distances between two sets of feature vectors (n, d), in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_ROWS = 1024  # of the kernel matrix at a time, which bounds memory


def frechet_distance(mean: Array, covariance: Array, mean_2: Array, covariance_2: Array) -> float:
    """Squared Fréchet distance of two Gaussians: |m - m'|² + Tr(C + C' - 2 (C C')^½).

    The trace of (C C')^½ is the sum of the singular values of C^½ C'^½: no square root of a
    product that is not symmetric, so no imaginary parts, and singular covariances are no special
    case (Dowson and Landau 1982; Heusel et al. 2017).
    """
    shared = np.linalg.svd(_root(covariance) @ _root(covariance_2), compute_uv=False).sum()
    gap = mean - mean_2
    total = gap @ gap + np.trace(covariance) + np.trace(covariance_2) - 2 * shared
    return max(0.0, float(total))  # below zero by rounding only


def frechet_of_features(x: Array, y: Array) -> float:
    """Fréchet distance of the Gaussians fitted to features (n, d) and (m, d); n, m at least 2.

    Biased upwards in small sets, the more so the more features there are.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    covariances = [np.atleast_2d(np.cov(z, rowvar=False)) for z in (x, y)]
    return frechet_distance(x.mean(0), covariances[0], y.mean(0), covariances[1])


def kernel_distance(x: Array, y: Array) -> float:
    """Kernel distance (KID): the unbiased squared maximum mean discrepancy with the kernel
    (x·y / d + 1)³, over all pairs (Binkowski et al. 2018); n, m at least 2.

    Zero in expectation for sets of one distribution, so single values can be negative. Published
    figures are often means over random subsets of 1000, which this equals in expectation.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    n, m = len(x), len(y)
    within_x = _kernel_sum(x, x) - _own_sum(x)
    within_y = _kernel_sum(y, y) - _own_sum(y)
    between = _kernel_sum(x, y) / (n * m)
    return float(within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * between)


def _kernel_sum(x: Array, y: Array) -> float:
    blocks = (x[start : start + _ROWS] for start in range(0, len(x), _ROWS))
    return float(sum(((block @ y.T / x.shape[1] + 1) ** 3).sum() for block in blocks))


def _own_sum(x: Array) -> float:
    """Sum of the kernel of each vector with itself."""
    return float((((x * x).sum(1) / x.shape[1] + 1) ** 3).sum())


def _root(covariance: Array) -> Array:
    """The symmetric square root of a positive semidefinite matrix."""
    values, vectors = np.linalg.eigh(covariance)
    root: Array = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return root
