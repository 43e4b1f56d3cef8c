"""Intervals and tests by prompt: rows of one prompt are not independent, so a prompt is the unit."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import studentized_range

from tmpdiff_bench.additivity.records import Interval

Array = NDArray[np.float64]
ALPHA = 0.05
DRAWS = 4000
FLIPS = 50_000
_EXACT = 15  # prompts up to which all sign flips are gone through


def bootstrap_mean(values: Array, rng: int | np.random.Generator = 0) -> Interval:
    """The mean of one value per prompt (n,), with the percentile interval of the prompts' bootstrap.

    Too narrow below some ten prompts; without bounds (NaN) below two.
    """
    if len(values) == 0:
        return Interval(math.nan, math.nan, math.nan)
    mean = float(values.mean())
    if len(values) < 2:
        return Interval(mean, math.nan, math.nan)
    generator = np.random.default_rng(rng)
    drawn = generator.integers(len(values), size=(DRAWS, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), [ALPHA / 2, 1 - ALPHA / 2])
    return Interval(mean, float(low), float(high))


def bootstrap_ratio(logs: Array, rng: int | np.random.Generator = 0) -> Interval:
    """The geometric mean of ratios, given one mean log ratio per prompt."""
    found = bootstrap_mean(logs, rng)
    return Interval(math.exp(found.estimate), math.exp(found.low), math.exp(found.high))


def sign_flip(values: Array) -> float:
    """Two-sided p value of "the values are symmetric about 0": how often a mean with random signs
    is as far from 0. Exact up to 15 prompts, so never below 2 / 2^n; else of 50,000 draws.
    """
    if len(values) == 0:
        return math.nan
    sums = np.abs(_signs(len(values)) @ values)
    return float(np.mean(sums >= abs(values.sum()) * (1 - 1e-12)))


@functools.lru_cache(maxsize=8)
def _signs(count: int) -> Array:
    if count <= _EXACT:
        return np.array(list(itertools.product((1.0, -1.0), repeat=count)))
    drawn = np.random.default_rng(0).integers(2, size=(FLIPS, count)) * 2.0 - 1.0
    return np.vstack([np.ones(count), drawn])  # the observed signs are one of the possible


def critical_difference(methods: int, blocks: int) -> float:
    """Nemenyi's: mean ranks over independent blocks that differ by more, differ at level 0.05.

    Demsar, Statistical comparisons of classifiers over multiple data sets, JMLR 7 (2006).
    """
    quantile = float(studentized_range.ppf(1 - ALPHA, methods, np.inf)) / math.sqrt(2)
    return quantile * math.sqrt(methods * (methods + 1) / (6 * blocks))
