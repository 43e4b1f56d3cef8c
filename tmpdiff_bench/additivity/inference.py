"""Do predicted errors equal measured joint errors? One test, one rule, one multiplicity.

The unit of replication is the prompt and the plan, never a row: rows of one prompt share its
noise and content, rows of one plan share what the plan does, so both are clusters (`clusters`).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from tmpdiff_bench.additivity.clusters import (
    BOOTSTRAP_DRAWS,
    Clusters,
    Codes,
    least_squares,
    wild_wald_p,
)
from tmpdiff_bench.additivity.records import AdditivityTest, Floats, Verdict
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.statistics import Interval

RULE = (
    "supported: joint/predicted lies between 1/(1+{margin:g}) and 1+{margin:g} as a geometric "
    "mean and, on the log-log calibration line over the plans' geometric mean predictions, at the "
    "10th and at the 90th percentile of these (two one-sided t tests at each of the three, all at "
    "level {alpha:g}), and R2 about the identity line over plans is above 0. refuted: at one of "
    "the three it lies outside (level {alpha:g}, Bonferroni). undecided: neither."
)
_ROUNDING = 1e-12  # residuals below this share of the errors are rounding, and test nothing


def additivity_test(
    predicted: ArrayLike,
    joint: ArrayLike,
    prompt_ids: Iterable[Hashable],
    plan_ids: Iterable[Hashable],
    *,
    margin: float = 0.10,
    alpha: float = 0.05,
    rng: int | np.random.Generator = 0,
) -> AdditivityTest:
    """Test predicted errors against measured joint errors, clustered by prompt and by plan.

    All arguments have equal length N: one row per (plan, prompt, seed), errors positive and in one
    unit. The fields of the result are explained in `AdditivityTest`, the verdict in `RULE`.

    Slope and intercept are in the units of the metric, as the hypothesis states them; unequal
    variances do no harm to cluster-robust inference. Ratios are judged in logs, where a relative
    margin is symmetric; their line is over the means of plans, because a prediction that is noisy
    from sample to sample would flatten a line over rows though it is right. Intervals and one-sided
    tests: cluster-jackknife standard errors and Student's t with min(prompts, plans) - 1 degrees of
    freedom. `wald_p`: wild cluster bootstrap, however many clusters there are. `tost_p`: Schuirmann
    (1987); all places of the rule together are an intersection-union test (Berger 1982), so its
    level is alpha without a correction. `reset_p`: Ramsey (1969), with the square of the
    predictions and the jackknife's variance.

    It lies when the plans are not exchangeable draws from the plans one cares about, and is
    conservative when there is no dependence to cluster. Below about five plans, expect
    "undecided".

    Raises `UsageError` for unequal lengths, errors that are not finite and positive, fewer than
    two prompts or plans, predictions that are all equal, a margin <= 0, alpha outside (0, 0.5).

    >>> rows = np.arange(40)
    >>> sums = 1.0 + rows // 8
    >>> additivity_test(sums, 0.5 * sums, rows % 8, rows // 8).verdict
    'refuted'
    """
    x, y, clusters = _checked(predicted, joint, list(prompt_ids), list(plan_ids))
    check_levels(margin, alpha)
    generator = np.random.default_rng(rng)
    exact = bool(np.max(np.abs(y - x)) <= _ROUNDING * np.max(y))
    design = np.column_stack([np.ones_like(x), x])
    line = least_squares(design, y, clusters)
    degrees = clusters.degrees
    wide = float(special.stdtrit(degrees, 1 - alpha / 2))
    used: list[str] = []

    def interval(contrast: tuple[float, ...]) -> Interval:
        value, error, variance = line.estimate(np.array(contrast))
        used.append(variance)
        return Interval(value, value - wide * error, value + wide * error)

    intercept, slope = interval((1.0, 0.0)), interval((0.0, 1.0))
    places = []
    for value, error, variance in _log_ratios(x, y, clusters):
        used.append(variance)
        places.append((value, error))
    ratios = [
        Interval(*(math.exp(value + shift * wide * error) for shift in (0.0, -1.0, 1.0)))
        for value, error in places
    ]
    inside, outside = zip(
        *(_margin_p(value, error, math.log1p(margin), degrees) for value, error in places),
        strict=True,
    )
    outside_p = min(1.0, 3 * min(outside))
    r2 = r2_plans(x, y, clusters.codes[1])
    return AdditivityTest(
        slope=slope,
        intercept=intercept,
        wald_p=1.0 if exact else wild_wald_p(design, y - x, clusters, generator),
        tost_p=inside[0],
        reset_p=1.0 if exact else _reset_p(x, y, clusters),
        median_relative_error=float(np.median(np.abs(y - x) / y)),
        r2_identity=r2_identity(x, y),
        r2_plans=r2,
        verdict=decide(max(inside), outside_p, r2, alpha),
        clusters=clusters.sizes[:2],
        method=_method(clusters, used),
        ratio=ratios[0],
        ratio_small=ratios[1],
        ratio_large=ratios[2],
        range_p=max(inside[1:]),
        outside_p=outside_p,
    )


def decide(equivalence_p: float, outside_p: float, r2: float, alpha: float) -> Verdict:
    """Apply `RULE` to (possibly adjusted) p values. NaN decides nothing."""
    if equivalence_p < alpha and r2 > 0:
        return "supported"
    return "refuted" if outside_p < alpha else "undecided"


def r2_identity(predicted: Floats, joint: Floats) -> float:
    """Compute R2 about the identity line; NaN where joint errors are all equal, or none."""
    spread = float(np.sum((joint - joint.mean()) ** 2)) if joint.size else 0.0
    return 1.0 - float(np.sum((joint - predicted) ** 2)) / spread if spread > 0 else math.nan


def r2_plans(predicted: Floats, joint: Floats, plans: Codes) -> float:
    """Compute R2 about the identity line between plans' mean log errors; plans (N,) coded 0.."""
    with np.errstate(divide="ignore", invalid="ignore"):  # an error of zero has no logarithm
        x, y = (plan_means(np.log(values), plans) for values in (predicted, joint))
        return r2_identity(x, y)


def plan_means(values: Floats, plans: Codes) -> Floats:
    """Average rows (N,) by plan: (P,)."""
    sums = np.bincount(plans, weights=values)
    return np.asarray(sums / np.bincount(plans), dtype=np.float64)


def check_levels(margin: float, alpha: float) -> None:
    """Raise `UsageError` unless margin > 0 and 0 < alpha < 0.5."""
    if not (margin > 0 and math.isfinite(margin)):
        raise UsageError(f"the margin must be a positive number such as 0.1 (10 %), got {margin}")
    if not 0 < alpha < 0.5:
        raise UsageError(f"alpha must be between 0 and 0.5, got {alpha}")


def _log_ratios(x: Floats, y: Floats, clusters: Clusters) -> list[tuple[float, float, str]]:
    """Estimate log(joint/predicted), its error and variance used: mean, low end, high end."""
    plans = clusters.codes[1]
    ratio, scale = np.log(y / x), plan_means(np.log(x), plans)
    low, high = np.quantile(scale, [0.1, 0.9])
    mean = least_squares(np.ones((len(x), 1)), ratio, clusters)
    line = least_squares(np.column_stack([np.ones_like(x), scale[plans]]), ratio, clusters)
    ends = [line.estimate(np.array([1.0, end])) for end in (low, high)]
    return [mean.estimate(np.ones(1)), *ends]


def _margin_p(value: float, error: float, bound: float, degrees: int) -> tuple[float, float]:
    """Test that |value| is inside the bound (two one-sided tests), and that it is outside."""
    below, above = bound - value, bound + value
    if error == 0.0:
        inside = below > 0 and above > 0
        return (0.0, 1.0) if inside else (1.0, 0.0)
    least = min(below, above) / error
    p_inside = special.stdtr(degrees, -least)
    p_outside = 2 * special.stdtr(degrees, least)
    return float(p_inside), min(1.0, float(p_outside))


def _reset_p(x: Floats, y: Floats, clusters: Clusters) -> float:
    """Run RESET with one added term; NaN where the predictions have fewer than three values."""
    if len(np.unique(x)) < 3:
        return math.nan
    centred = (x - x.mean()) / x.std()
    design = np.column_stack([np.ones_like(x), centred, centred**2])
    value, error, _ = least_squares(design, y, clusters).estimate(np.array([0.0, 0.0, 1.0]))
    return (
        2 * float(special.stdtr(clusters.degrees, -abs(value) / error)) if error > 0 else math.nan
    )


def _method(clusters: Clusters, used: list[str]) -> str:
    prompts, plans = clusters.sizes[:2]
    text = (
        f"least squares clustered by prompt ({prompts}) and plan ({plans}): jackknife CV3, "
        f"t({clusters.degrees}); Wald by wild cluster bootstrap (Webb weights, "
        f"{BOOTSTRAP_DRAWS} draws by prompt and by plan, larger p)"
    )
    fallbacks = [f"{name} {used.count(name)} of {len(used)}" for name in ("prompt", "plan")]
    if any(name != "two-way" for name in used):
        text += f"; one-way variance where larger than the two-way: {', '.join(fallbacks)}"
    return text


def _checked(
    predicted: ArrayLike,
    joint: ArrayLike,
    prompt_ids: Sequence[Hashable],
    plan_ids: Sequence[Hashable],
) -> tuple[Floats, Floats, Clusters]:
    x, y = (np.asarray(values, dtype=np.float64) for values in (predicted, joint))
    if x.ndim != 1 or y.ndim != 1:
        raise UsageError(f"errors must be one-dimensional, got shapes {x.shape} and {y.shape}")
    lengths = {
        "predicted": len(x),
        "joint": len(y),
        "prompt_ids": len(prompt_ids),
        "plan_ids": len(plan_ids),
    }
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise UsageError(f"arrays of unequal length: {counts}")
    for name, values in (("predicted", x), ("joint", y)):
        bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if len(bad):
            raise UsageError(
                f"{name} errors must be finite and positive: {len(bad)} of {len(values)} are not, "
                f"the first is {values[bad[0]]} in row {bad[0]}"
            )
    prompts, plans = len(set(prompt_ids)), len(set(plan_ids))
    if min(prompts, plans) < 2:
        raise UsageError(
            "clustering by prompt and plan needs at least 2 of each, "
            f"got {prompts} prompt(s) and {plans} plan(s)"
        )
    if np.ptp(x) <= _ROUNDING * np.max(x):
        raise UsageError("all predicted errors are equal: no slope can be estimated")
    clusters = Clusters.of(prompt_ids, plan_ids)
    if np.ptp(plan_means(np.log(x), clusters.codes[1])) <= _ROUNDING:
        raise UsageError("all plans have equal predicted errors: no slope can be estimated")
    return x, y, clusters
