"""Fréchet and kernel distances against closed forms, brute force and clean-fid."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tmpdiff_bench.metrics.features import (
    _ROWS,
    frechet_distance,
    frechet_of_features,
    kernel_distance,
)

Array = NDArray[np.float64]


def covariance(rng: np.random.Generator, d: int, rank: int) -> Array:
    factor = rng.standard_normal((d, rank))
    return factor @ factor.T / rank


@given(st.integers(0, 10_000), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_diagonal_gaussians_have_a_closed_form(seed: int, d: int) -> None:
    rng = np.random.default_rng(seed)
    (m, n), (s, t) = rng.standard_normal((2, d)), rng.random((2, d)) * (rng.random((2, d)) > 0.2)
    expected = ((m - n) ** 2 + (s - t) ** 2).sum()
    assert frechet_distance(m, np.diag(s**2), n, np.diag(t**2)) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("seed", range(4))
def test_brute_force_over_couplings(seed: int) -> None:
    """The distance is the least mean square gap over all Gaussian couplings of the two.

    In two dimensions these are C^½ O C'^½ with O a rotation or a reflection: all are tried.
    """
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, 2, 2))  # covariances a aᵀ and b bᵀ
    mean, mean_2 = rng.standard_normal((2, 2))
    angles = np.linspace(0, 2 * np.pi, 20_001)
    c, s = np.cos(angles), np.sin(angles)
    turns = np.array([[c, -s], [s, c]]).transpose(2, 0, 1)
    turns = np.concatenate([turns, turns * [[1, -1]]])
    gaps = a - b @ turns  # X = a z, Y = b O z share z
    expected = (gaps**2).sum((1, 2)).min() + ((mean - mean_2) ** 2).sum()
    found = frechet_distance(mean, a @ a.T, mean_2, b @ b.T)
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("d", "rank"), [(5, 5), (40, 40), (40, 7)])
def test_against_the_matrix_square_root(d: int, rank: int) -> None:
    """Of the product, as published code does; where it is singular, a little noise is added."""
    rng = np.random.default_rng(d + rank)
    a, b = covariance(rng, d, rank), covariance(rng, d, d)
    mean, mean_2 = rng.standard_normal((2, d))
    root = scipy.linalg.sqrtm((a + 1e-12 * np.eye(d)) @ b)
    expected = ((mean - mean_2) ** 2).sum() + np.trace(a + b) - 2 * np.trace(root).real
    assert frechet_distance(mean, a, mean_2, b) == pytest.approx(expected, rel=1e-5)


@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(1, 8))
@settings(max_examples=30, deadline=None)
def test_identity_symmetry_shift_and_scale(seed: int, n: int, d: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, d)), rng.standard_normal((n + 3, d)) + 1
    found = frechet_of_features(x, y)
    assert frechet_of_features(x, x[::-1]) == pytest.approx(0, abs=1e-7)
    assert frechet_of_features(y, x) == pytest.approx(found, rel=1e-6, abs=1e-7)
    assert frechet_of_features(x + 5, y + 5) == pytest.approx(found, rel=1e-5, abs=1e-6)
    assert frechet_of_features(3 * x, 3 * y) == pytest.approx(9 * found, rel=1e-6, abs=1e-6)
    assert frechet_of_features(x, x + 2) == pytest.approx(4 * d, rel=1e-6)


def test_known_gaussians_from_samples() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 200_000, 3)) * [[[1.0]], [[2.0]]]
    assert frechet_of_features(x, y + 1) == pytest.approx(3 * (1 + 1), rel=0.02)


def test_clean_fid_gives_the_same() -> None:
    from cleanfid import fid

    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((300, 24)), rng.random((300, 24))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses an argument of scipy's that will go
        moments = [z for s in (x, y) for z in (s.mean(0), np.cov(s, rowvar=False))]
        assert frechet_of_features(x, y) == pytest.approx(fid.frechet_distance(*moments), rel=1e-8)
    # one subset that holds everything is no subset
    assert kernel_distance(x, y) == pytest.approx(
        fid.kernel_distance(x, y, num_subsets=1), rel=1e-8
    )


def test_kernel_distance_by_hand() -> None:
    """Over every pair, for sets of unequal size, beyond one block of rows."""
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((_ROWS + 5, 2)), rng.standard_normal((7, 2)) + 0.5

    def kernel(a: Array, b: Array) -> Array:
        return (np.einsum("id,jd->ij", a, b) / 2 + 1) ** 3

    means = [kernel(z, z)[~np.eye(len(z), dtype=bool)].mean() for z in (x, y)]
    expected = sum(means) - 2 * kernel(x, y).mean()
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_is_unbiased() -> None:
    rng = np.random.default_rng(3)
    found = [kernel_distance(*rng.standard_normal((2, 20, 4))) for _ in range(400)]
    assert abs(np.mean(found)) < 4 * np.std(found) / 20
    assert min(found) < 0 < max(found)
