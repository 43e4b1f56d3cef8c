"""Inference on paired differences and ranks: functions of arrays.

The unit of replication is the prompt: values of one prompt, over tasks, are averaged before.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests

from tmpdiff_bench.errors import UsageError

Floats = NDArray[np.float64]
EXACT_UNITS = 14  # up to 2^14 patterns of signs are all tried
RESAMPLES = 9_999


@dataclass(frozen=True)
class Interval:
    """An estimate and the two ends of its confidence interval; NaN is what is not known."""

    estimate: float = math.nan
    low: float = math.nan
    high: float = math.nan

    def columns(self, name: str) -> dict[str, float]:
        """As three columns of a table."""
        return {name: self.estimate, f"{name}_low": self.low, f"{name}_high": self.high}

    @classmethod
    def of(cls, row: Mapping[str, Any], name: str) -> Interval:
        """What `columns` made."""
        return cls(row[name], row[f"{name}_low"], row[f"{name}_high"])


def paired_interval(
    differences: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    rng: int | np.random.Generator = 0,
) -> Interval:
    """The mean of differences (n,), one per prompt, with a bootstrap interval.

    Prompts are drawn with replacement and means are studentised (Efron & Tibshirani 1993, chapter
    12): percentile intervals are too short for a dozen prompts. With fewer than three prompts, or
    equal differences, there is nothing to resample: the ends are NaN, or the mean itself.
    """
    x = _units(differences)
    mean, n = float(x.mean()), len(x)
    if n < 3:
        return Interval(mean, math.nan, math.nan)
    error = x.std(ddof=1) / math.sqrt(n)
    if error <= 1e-12 * abs(mean):
        return Interval(mean, mean, mean)
    drawn = x[np.random.default_rng(rng).integers(n, size=(resamples, n))]
    spread = drawn.std(axis=1, ddof=1) / math.sqrt(n)
    # a draw of one prompt n times has no spread; rare, and left out
    t = (drawn.mean(axis=1) - mean)[spread > 0] / spread[spread > 0]
    low, high = np.quantile(t, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, mean - float(high) * error, mean - float(low) * error)


def sign_flip(differences: ArrayLike, *, rng: int | np.random.Generator = 0) -> float:
    """Two-sided p-value of "differences are symmetric about 0", one per prompt.

    Exact (all 2^n patterns of signs) up to 14 prompts, else from 9,999 random patterns, the
    observed one added (Phipson & Smyth 2010), so never 0. With n prompts it is 2^(1-n) at least.
    """
    x = _units(differences)
    if len(x) == 1:  # both patterns are as far from 0
        return 1.0
    found = stats.permutation_test(
        (x,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf if len(x) <= EXACT_UNITS else RESAMPLES,
        rng=np.random.default_rng(rng),
    )
    return float(found.pvalue)


def holm(p_values: ArrayLike) -> Floats:
    """Adjusted p-values of a family (Holm 1979), in the order given; NaN, for what was not tested,
    stays NaN and counts for nothing.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.array(p_values, dtype=np.float64)
    tested = ~np.isnan(p)
    gc.freeze()  # multipletests collects garbage at every call, which takes 0.3 s beside torch
    try:
        p[tested] = multipletests(p[tested], method="holm")[1]
    finally:
        gc.unfreeze()
    return p


@dataclass(frozen=True)
class Ranks:
    """Mean ranks of k methods over N blocks, 1 being best.

    `critical_difference`: mean ranks that differ by less are not told apart (Nemenyi, at 5 %).
    `friedman_p`: of "all methods are alike". `cliques`: largest sets not told apart.
    """

    names: tuple[str, ...]
    mean_ranks: tuple[float, ...]
    blocks: int
    friedman_p: float
    critical_difference: float

    @property
    def cliques(self) -> list[tuple[str, ...]]:
        """By mean rank; sets of one are left out."""
        order = sorted(range(len(self.names)), key=lambda i: self.mean_ranks[i])
        found: list[tuple[int, ...]] = []
        for start, first in enumerate(order):
            reach = [
                i
                for i in order[start:]
                if self.mean_ranks[i] - self.mean_ranks[first] <= self.critical_difference
            ]
            if len(reach) > 1 and not any(set(reach) <= set(clique) for clique in found):
                found.append(tuple(reach))
        return [tuple(self.names[i] for i in clique) for clique in found]


def mean_ranks(errors: ArrayLike, names: Sequence[str], *, alpha: float = 0.05) -> Ranks:
    """Ranks of errors (N blocks, k methods), lower being better (Demsar 2006). Ties share a rank.

    Blocks should be independent. Tasks that differ in target speedup alone are not: average over
    them first.
    """
    table = np.asarray(errors, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != len(names) or not np.isfinite(table).all():
        raise UsageError(f"errors of shape (N, {len(names)}) and finite are needed")
    blocks, k = table.shape
    if blocks < 2 or k < 3:
        raise UsageError(f"{k} methods in {blocks} blocks: 3 and 2 are the least to be ranked")
    ranks = stats.rankdata(table, axis=1)
    same = bool((ranks == ranks[:, :1]).all())
    p = 1.0 if same else float(stats.friedmanchisquare(*table.T).pvalue)
    q = float(stats.studentized_range.ppf(1 - alpha, k, np.inf)) / math.sqrt(2)
    difference = q * math.sqrt(k * (k + 1) / (6 * blocks))
    return Ranks(tuple(names), tuple(map(float, ranks.mean(axis=0))), blocks, p, difference)


def _units(differences: ArrayLike) -> Floats:
    x = np.asarray(differences, dtype=np.float64)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
        raise UsageError("differences are finite numbers, one a prompt, and at least one")
    return x
