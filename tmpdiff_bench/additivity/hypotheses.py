"""H1, H1m and H2 of one level, and the checks that need no predictor; on arrays, in float64.

Intervals resample prompts (seeds go with their prompt) and take the plans as given. Every
statistic is a function of per-sample inner products, so a resample costs a matrix product.
Shapes: n samples, S steps, P joint plans, D latent elements, B resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from tmpdiff_bench.additivity.records import Floats, Verdict
from tmpdiff_bench.statistics import Interval

DRAWS = 2000


@dataclass(frozen=True, eq=False)
class PromptBootstrap:
    """Resamples of the prompts: `weights` (B, n) says how often each sample is drawn."""

    weights: Floats
    prompt_ids: tuple[Hashable, ...]
    alpha: float
    seed: int

    @classmethod
    def of(cls, prompt_ids: Sequence[Hashable], *, alpha: float, seed: int) -> PromptBootstrap:
        """Draw the resamples."""
        codes = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompt_ids))}
        size = len(codes)
        counts = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), DRAWS)
        weights = counts[:, [codes[prompt] for prompt in prompt_ids]].astype(np.float64)
        return cls(weights, tuple(prompt_ids), alpha, seed)

    def of_rows(self, rows: NDArray[np.int64]) -> PromptBootstrap:
        """Draw resamples for some of the samples only."""
        prompt_ids = [self.prompt_ids[row] for row in rows]
        return PromptBootstrap.of(prompt_ids, alpha=self.alpha, seed=self.seed)

    @property
    def prompts(self) -> int:
        """Count the prompts."""
        return len(set(self.prompt_ids))

    def interval(
        self, statistic: Callable[[Floats], Floats], alpha: float | None = None
    ) -> Interval:
        """Estimate `statistic`, which maps weights (B, n) to values (B,), with its interval."""
        values = self.values(statistic)
        low, high = self.ends(values, alpha)
        return Interval(float(values[0]), float(low), float(high))

    def values(self, statistic: Callable[[Floats], Floats]) -> Floats:
        """Compute the statistic of the data, followed by those of the resamples."""
        return statistic(np.vstack([np.ones(self.weights.shape[1]), self.weights]))

    def ends(self, values: Floats, alpha: float | None = None) -> Floats:
        """Find the ends (2, ...) of intervals; NaN below two prompts, where nothing varies.

        Percentiles, moved out as Hesterberg (2015, "What teachers should know about the bootstrap",
        section 4) so that few prompts do not make intervals too narrow.
        """
        if self.prompts < 2:
            return np.full((2, *values.shape[1:]), math.nan)
        tail = (self.alpha if alpha is None else alpha) / 2
        quantile = stats.t.ppf(tail, self.prompts - 1) * math.sqrt(
            self.prompts / (self.prompts - 1)
        )
        share = float(stats.norm.cdf(quantile))
        return np.asarray(np.quantile(values[1:], [share, 1 - share], axis=0), dtype=np.float64)

    def verdict(self, statistic: Callable[[Floats], Floats], low: float, high: float) -> Verdict:
        """Decide whether a statistic lies in [low, high], by intervals (1 - 2 alpha, 1 - alpha).

        Supported: the 1 - 2 alpha interval lies inside. Refuted: the 1 - alpha interval lies
        outside. Undecided: neither, or fewer than two prompts.
        """
        values = self.values(statistic)
        inner, outer = self.ends(values, 2 * self.alpha), self.ends(values)
        if low <= inner[0] and inner[1] <= high:
            return "supported"
        return "refuted" if outer[1] < low or outer[0] > high else "undecided"


@dataclass(frozen=True, eq=False)
class Overlap:
    """Measured joint errors e against superposed ones s, each (P, n): squares per element."""

    measured: Floats
    superposed: Floats
    cross: Floats
    difference: Floats

    @classmethod
    def of(cls, joint: ArrayLike, deviations: ArrayLike, membership: Floats) -> Overlap:
        """Compare `joint` (P, n, D) with the sums of `deviations` (K, n, D) over `membership`."""
        measured, single = np.asarray(joint), np.asarray(deviations)
        plans, samples, size = measured.shape
        result = np.empty((4, plans, samples))
        for i in range(samples):  # by sample, so that only one of them is held in float64
            e = measured[:, i].astype(np.float64)
            s = membership @ single[:, i].astype(np.float64)
            for row, product in enumerate((e * e, s * s, e * s, (e - s) ** 2)):
                result[row, :, i] = product.sum(axis=1) / size
        return cls(*result)

    @property
    def residual(self) -> Floats:
        """Give |e - s| / |e|, (P, n)."""
        return np.sqrt(self.difference / self.measured)

    @property
    def cosine(self) -> Floats:
        """Give the cosine of e and s, (P, n)."""
        return self.cross / np.sqrt(self.measured * self.superposed)

    @property
    def nonzero(self) -> NDArray[np.bool_]:
        """Say which plans (P,) have no vanishing vector, so that all ratios exist."""
        return np.asarray(((self.measured > 0) & (self.superposed > 0)).all(axis=1), dtype=np.bool_)

    def only(self, plans: NDArray[np.bool_]) -> Overlap:
        """Keep some plans."""
        parts = (self.measured, self.superposed, self.cross, self.difference)
        return Overlap(*(part[plans] for part in parts))

    def mean_square_ratio(self, weights: Floats) -> Floats:
        """Compute H1m: E|e|^2 / E|s|^2 over samples, geometric mean over plans; (B,)."""
        ratios = (weights @ self.measured.T) / (weights @ self.superposed.T)
        return np.asarray(np.exp(np.log(ratios).mean(axis=1)), dtype=np.float64)


def means_of(values: Floats) -> Callable[[Floats], Floats]:
    """Make the statistic "mean over samples" (B, P) of `values` (P, n)."""
    return lambda weights: weights @ values.T / weights.sum(axis=1)[:, None]


def mean_of(values: Floats) -> Callable[[Floats], Floats]:
    """Make the statistic "mean over samples, then over plans" of `values` (P, n) or (n,)."""
    flat = np.atleast_2d(values).mean(axis=0)
    return lambda weights: weights @ flat / weights.sum(axis=1)


def inner_products(deviations: ArrayLike, others: ArrayLike | None = None) -> Floats:
    """Compute inner products per latent element of deviations (K, n, D): (n, K, K).

    With `others` (K, n, D), a replicate, the symmetric part of the cross-replicate products: free
    of the noise that a run shares with itself, so unbiased for the systematic part.
    """
    first = np.asarray(deviations)
    second = first if others is None else np.asarray(others)
    cells, samples, size = first.shape
    products = np.empty((samples, cells, cells))
    for i in range(samples):
        one, two = first[:, i].astype(np.float64), second[:, i].astype(np.float64)
        products[i] = one @ two.T / size
    return (products + products.transpose(0, 2, 1)) / 2


def off_diagonal_share(products: Floats) -> Callable[[Floats], Floats]:
    """Make H2's statistic from (n, S, S): 1 - trace / total of the mean Gram matrix."""
    totals, traces = products.sum(axis=(1, 2)), np.trace(products, axis1=1, axis2=2)
    return lambda weights: 1 - (weights @ traces) / (weights @ totals)


def systematic_share(first: Floats, second: Floats, across: Floats) -> Callable[[Floats], Floats]:
    """Make the statistic "share of the single-step mean squares that a replicate repeats".

    All (r, S, S): products within the runs, within their replicates, and across the two.
    """
    within = (np.trace(first, axis1=1, axis2=2) + np.trace(second, axis1=1, axis2=2)) / 2
    shared = np.trace(across, axis1=1, axis2=2)
    return lambda weights: (weights @ shared) / (weights @ within)


def context_ratio(
    uniform: Floats, complements: Floats, singles: Floats
) -> Callable[[Floats], Floats]:
    """Make the design-free statistic: sum of what raising a step saves / sum of single errors.

    `uniform` (n,): error of the all-low run; `complements`, `singles` (C, n): with one step high,
    and of that step low alone.
    """
    saved, alone = (uniform - complements).sum(axis=0), singles.sum(axis=0)
    return lambda weights: (weights @ saved) / (weights @ alone)


def rank_within(predicted: Floats, joint: Floats, strata: NDArray[np.int64]) -> tuple[Floats, int]:
    """Compare the order of plans, (P, n) each, in pairs of equal `strata` (P,).

    Returns concordance less discordance per sample (n,), whose mean is Kendall's tau (1938), and
    the number of pairs; without a pair, NaN and 0.
    """
    first, second = np.triu_indices(len(strata), 1)
    same = strata[first] == strata[second]
    first, second = first[same], second[same]
    if not len(first):
        return np.full(predicted.shape[1], math.nan), 0
    agreement = np.sign(predicted[first] - predicted[second]) * np.sign(
        joint[first] - joint[second]
    )
    return np.asarray(agreement.mean(axis=0), dtype=np.float64), len(first)
