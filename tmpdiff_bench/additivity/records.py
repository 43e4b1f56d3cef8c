"""What the analysis of additivity returns: small frozen records, their tables and their JSON.

Every interval has coverage 1 - alpha (95 % by default) unless its docstring says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tmpdiff_bench.statistics import Interval

Floats = NDArray[np.float64]
Verdict = Literal["supported", "refuted", "undecided", "not defined"]


@dataclass(frozen=True)
class AdditivityTest:
    """Whether predicted errors equal measured joint errors (`inference.additivity_test`).

    `slope`, `intercept`: joint = intercept + slope * predicted, least squares in the units of the
    metric. They lie when the predictions are themselves noisy: that pulls the slope towards zero.
    With few plans their intervals cover 90 to 98 % instead of 95 % (simulated, 6 to 24 plans); no
    verdict depends on them.
    `wald_p`: slope 1 and intercept 0 together. With many rows a deviation too small to matter is
    significant; `tost_p` answers whether it matters.
    `ratio`: geometric mean of joint / predicted; `ratio_small`, `ratio_large`: the same on the
    log-log calibration line over plans at the 10th and the 90th percentile of the plans' geometric
    mean predictions.
    `tost_p`: two one-sided tests that `ratio` is inside the margin; `range_p`: that both ends are
    (the larger p). `outside_p`: that one of the three is outside (Bonferroni).
    `reset_p`: RESET, whether a square of the prediction is missing (curvature). It has little
    power with few plans: a large p is no proof of a straight line.
    `median_relative_error`: of |joint - predicted| / joint over rows. `r2_identity`: 1 - sum of
    squares about the identity line / about the mean of joint; negative when the constant mean
    predicts better. It rises with the range of the plans, so compare it on the same plans only.
    A few samples that are predicted far too large can decide it. `r2_plans`: the same between the
    plans' mean log errors, where a sample counts by its ratio and prompts average out.
    `verdict`: by `inference.RULE`. `clusters`: numbers of prompts and of plans. `method`: how
    variances and p values were computed, with every fallback taken.
    """

    slope: Interval
    intercept: Interval
    wald_p: float
    tost_p: float
    reset_p: float
    median_relative_error: float
    r2_identity: float
    r2_plans: float
    verdict: Verdict
    clusters: tuple[int, int]
    method: str
    ratio: Interval
    ratio_small: Interval
    ratio_large: Interval
    range_p: float
    outside_p: float

    @property
    def equivalence_p(self) -> float:
        """Give the p value of equivalence everywhere (intersection-union: the largest p)."""
        return max(self.tost_p, self.range_p)


@dataclass(frozen=True)
class Score:
    """One predictor of one metric at one level, on the plans that it was not fitted to.

    `level` is a low level, or "mixed" for the plans that use several. `test` is None where the
    predictor is not defined, and `reason` says why. Predictors without free parameters have no
    training plans: every plan is held out for them, and `test` is on all of them. `r2_common` is
    `r2_plans` on the held-out third, the same plans for all predictors: compare
    them by that one, and expect little of it with few plans. `rank_within`: Kendall's tau between
    predicted and joint over pairs of plans with equally many low steps, within a sample (interval:
    bootstrap over prompts, these plans taken as given); None where no such pair exists;
    `rank_pairs` counts the pairs per sample. `parameters`: what was fitted on the training plans
    (degenerate intervals where none is computed). `floor_ratio`: the smallest single-step error of
    the level over the numerical floor (in latents). The `*_holm` p values and `verdict` are
    adjusted over the metrics of the predictor at this level.
    """

    level: str
    metric: str
    predictor: str
    test: AdditivityTest | None
    reason: str
    verdict: Verdict
    training_plans: int
    held_out_plans: int
    floor_ratio: float
    r2_common: float = math.nan
    rank_within: Interval | None = None
    rank_pairs: int = 0
    parameters: Mapping[str, Interval] = field(default_factory=dict)
    wald_p_holm: float = math.nan
    equivalence_p_holm: float = math.nan
    outside_p_holm: float = math.nan


@dataclass(frozen=True, eq=False)
class Superposition:
    """H1, H1m and H2 of one level, over its joint plans (intervals: bootstrap over prompts).

    The intervals speak of other prompts, with these plans taken as given.
    `residual`: mean of |e - sum of deviations| / |e|; `cosine`: mean cosine of the two (H1).
    `mean_square_ratio`: mean square of e over that of the sum of deviations, geometric mean over
    plans (H1m). `off_diagonal_share`: share of the all-low mean square, as superposition predicts
    it, that comes from off-diagonal terms of the Gram matrix (H2): 0 when orthogonal, 1 - 1/S when
    all steps push the same way, negative when they cancel.
    `systematic_share`: share of the single-step mean squares that a replicate repeats, from
    cross-replicate products; None without replicates. It lies when the jitter is too small to
    draw the rounding anew (then it is near 1).
    `context_cosine`: mean cosine between a step's deviation in an otherwise high and in an
    otherwise low run (design-free); None without complement plans.
    Arrays `plans` ... `ratio_by_plan` have one entry per plan, means over samples.
    """

    level: str
    residual: Interval
    cosine: Interval
    residual_verdict: Verdict
    mean_square_ratio: Interval
    mean_square_verdict: Verdict
    off_diagonal_share: Interval
    orthogonality_verdict: Verdict
    systematic_share: Interval | None
    context_cosine: Interval | None
    clusters: tuple[int, int]
    floor_ratio: float
    plans: tuple[str, ...]
    low_steps: NDArray[np.int64]
    residual_by_plan: Floats
    cosine_by_plan: Floats
    ratio_by_plan: Floats


@dataclass(frozen=True, eq=False)
class DesignFreeCheck:
    """One low step in an all-high run against one high step in an all-low run.

    `alone[k]`: mean single error of `steps[k]`. `removed[k]`: mean error of the all-low run less
    that of the same run with `steps[k]` high. Additivity of the metric makes them equal.
    `ratio`: sum of `removed` / sum of `alone` (interval: bootstrap over prompts).
    """

    level: str
    metric: str
    steps: tuple[int, ...]
    alone: Floats
    removed: Floats
    ratio: Interval
    verdict: Verdict
    clusters: int
    floor_ratio: float


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """Mean single-step error of one level and metric; arrays of shape (S,).

    `low`, `high`: bootstrap over prompts. `floor_ratio`: latent RMSE of the step over the
    numerical floor; `flagged`: below 10, so that the value is not to be interpreted.
    """

    level: str
    metric: str
    error: Floats
    low: Floats
    high: Floats
    floor_ratio: Floats
    flagged: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class GramMatrix:
    """Mean inner products of terminal deviations per latent element, (S, S), of one level.

    The diagonal of `matrix` is the latent MSE of the single steps. `systematic`: the same from
    cross-replicate products, free of the rounding noise; None without replicates.
    """

    level: str
    matrix: Floats
    systematic: Floats | None


@dataclass(frozen=True)
class Fidelity:
    """Mean of a metric over the samples of a run (interval: bootstrap over prompts).

    `kind`: the plan's label in the design, or "reference" for the metrics that the reference run
    has a value of its own of. `mean` is None where the metric can't be had; `not_available` says
    why. A mean over infinite values (PSNR of equal images) is infinite and has no interval.
    """

    metric: str
    plan: str
    kind: str
    unit: str
    mean: Interval | None
    not_available: str = ""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predicted against measured errors: `predicted`, `joint` (P, n); the rest has length P.

    `held_out`: the predictor was not fitted to the plan (always, where it has no free parameter).
    """

    level: str
    metric: str
    predictor: str
    plans: tuple[str, ...]
    kinds: tuple[str, ...]
    low_steps: NDArray[np.int64]
    held_out: NDArray[np.bool_]
    predicted: Floats
    joint: Floats
