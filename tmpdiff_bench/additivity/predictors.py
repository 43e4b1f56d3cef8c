"""Predictors of a joint error from single errors.

A cell is a (step, level); K cells and n samples. A predictor is fitted on training plans, and then
maps the membership of plans (P, K), 1 where the plan uses the cell, to errors (P, n).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax, stdtrit

from tmpdiff_bench.additivity.clusters import Clusters, Fit, least_squares
from tmpdiff_bench.additivity.records import Floats
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.statistics import Interval

_EXPONENTS = np.geomspace(0.25, 16, 25)
_RIDGES = np.geomspace(1e-4, 1e4, 33)


class NotDefinedError(UsageError):
    """A predictor that these data cannot give; the message says why."""


@dataclass(frozen=True, eq=False)
class SingleErrors:
    """What single runs say: `values` (K, n), one metric of each cell and sample.

    `products` (n, K, K): inner products of terminal deviations per latent element, None for
    metrics of images. `squared`: the metric is a mean square, as the products are; else a root.
    """

    metric: str
    values: Floats
    products: Floats | None
    squared: bool


@dataclass(frozen=True, eq=False)
class Training:
    """Training plans: `membership` (P, K), `joint` (P, n) errors, prompt of each sample."""

    membership: Floats
    joint: Floats
    prompt_ids: Sequence[Hashable]
    alpha: float = 0.05

    def fit(self, design: Floats, response: Floats) -> tuple[Fit, float]:
        """Regress (P, n, k) on (P, n); also give the quantile that makes errors intervals."""
        plans, samples = self.joint.shape
        clusters = Clusters.of(
            list(self.prompt_ids) * plans, np.repeat(np.arange(plans), samples).tolist()
        )
        fit = least_squares(design.reshape(plans * samples, -1), response.ravel(), clusters)
        return fit, float(stdtrit(clusters.degrees, 1 - self.alpha / 2))

    def require(self, plans: int) -> None:
        """Raise `NotDefinedError` below that many plans, or where all samples are of one prompt."""
        if len(self.joint) < plans:
            raise NotDefinedError(f"needs {plans} training plans, got {len(self.joint)}")
        if len(set(self.prompt_ids)) < 2:
            raise NotDefinedError("needs at least 2 prompts to be fitted")
        if not np.all(self.joint > 0):
            raise NotDefinedError("a joint error of the training plans is not positive")


@dataclass(frozen=True, eq=False)
class Fitted:
    """`predict` maps membership (P, K) to errors (P, n); `parameters` are what was fitted."""

    predict: Callable[[Floats], Floats]
    parameters: Mapping[str, Interval] = field(default_factory=dict)


class Predictor(Protocol):
    """Fit to training plans (those without free parameters ignore them).

    Raises `NotDefinedError` where the data do not define it.
    """

    def __call__(self, singles: SingleErrors, training: Training) -> Fitted: ...


def sum_(singles: SingleErrors, training: Training) -> Fitted:
    """Additivity read literally (H3): the sum of the single errors. No free parameter."""
    return Fitted(lambda membership: membership @ singles.values)


def root_sum_squares(singles: SingleErrors, training: Training) -> Fitted:
    """Take the root of the sum of squares: errors at right angles (H1m and H2) if they are roots.

    No free parameter. For a metric that is itself a mean square, orthogonality is the plain sum.
    """
    return Fitted(lambda membership: np.sqrt(membership @ singles.values**2))


def power_sum(singles: SingleErrors, training: Training) -> Fitted:
    """Fit p in (sum of errors^p)^(1/p): 1 is `sum`, 2 `root_sum_squares`, large p the largest one.

    Least squares in logs over p in [0.25, 16]. The interval of `exponent` is a t interval of log p
    from the linearised model, clustered by prompt and plan; meaningless at an end of the range.
    """
    training.require(2)
    with np.errstate(divide="ignore"):
        logs = np.log(singles.values)
    target = np.log(training.joint)

    def terms(membership: Floats, exponent: float) -> Floats:
        used = np.where(membership > 0, 1.0, 0.0)[:, :, None]
        with np.errstate(divide="ignore"):
            return np.log(used) + exponent * logs

    def log_error(membership: Floats, exponent: float) -> Floats:
        result: Floats = logsumexp(terms(membership, exponent), axis=1) / exponent
        return result

    def loss(log_exponent: float) -> float:
        residual = target - log_error(training.membership, float(np.exp(log_exponent)))
        return float(np.sum(residual**2))

    if not np.all(np.isfinite(log_error(training.membership, 1.0))):
        raise NotDefinedError("all single errors of a training plan are zero for some sample")
    grid = np.log(_EXPONENTS)
    best = int(np.argmin([loss(float(value)) for value in grid]))
    bounds = (float(grid[max(best - 1, 0)]), float(grid[min(best + 1, len(grid) - 1)]))
    centre = float(minimize_scalar(loss, bounds=bounds, method="bounded").x)
    exponent = float(np.exp(centre))
    # derivative of the log prediction by log p, to cluster the error of the fit
    weights = softmax(terms(training.membership, exponent), axis=1)
    mean_log = np.sum(weights * np.where(weights > 0, np.maximum(logs, -1e3), 0.0), axis=1)
    prediction = log_error(training.membership, exponent)
    slope = mean_log - prediction
    if not np.any(np.abs(slope) > 1e-9):
        raise NotDefinedError("no training plan has two steps of non-zero single error")
    fit, wide = training.fit(slope[:, :, None], target - prediction)
    _, error, _ = fit.estimate(np.ones(1))
    ends = np.exp([centre - wide * error, centre + wide * error])
    return Fitted(
        lambda membership: np.exp(log_error(membership, exponent)),
        {"exponent": Interval(exponent, float(ends[0]), float(ends[1]))},
    )


def gram(singles: SingleErrors, training: Training) -> Fitted:
    """Superpose the deviations (H1m): root of s'Gs, each sample with its own products.

    No free parameter. For mean squares s'Gs itself; not defined for metrics of images.
    """
    if singles.products is None:
        raise NotDefinedError(f"{singles.metric} has no inner products: latent metrics only")
    products = singles.products

    def predict(membership: Floats) -> Floats:
        squares: Floats = np.einsum("npk,pk->pn", membership @ products, membership)
        squares = np.maximum(squares, 0.0)  # full cancellation leaves rounding of either sign
        return squares if singles.squared else np.sqrt(squares)

    return Fitted(predict)


def affine_sum(singles: SingleErrors, training: Training) -> Fitted:
    """Fit intercept + slope * sum, by least squares of relative errors.

    Predictions are kept above half the smallest joint error in training: below zero there are none.
    """
    training.require(2)
    sums = _positive_sums(singles, training)
    fit, wide = training.fit(
        np.stack([1 / sums, np.ones_like(sums)], axis=-1), training.joint / sums
    )
    intercept, slope = fit.coefficients
    least = 0.5 * float(training.joint.min())
    parameters = {}
    for name, contrast in (("intercept", np.array([1.0, 0.0])), ("slope", np.array([0.0, 1.0]))):
        value, error, _ = fit.estimate(contrast)
        parameters[name] = Interval(value, value - wide * error, value + wide * error)
    return Fitted(
        lambda membership: np.maximum(intercept + slope * (membership @ singles.values), least),
        parameters,
    )


def pairwise(singles: SingleErrors, training: Training) -> Fitted:
    """Add to the sum an interaction of every two cells, c_kl * sqrt(m_k * m_l).

    For mean squares with c = 2 * cosine this is the Gram form. Far more coefficients than plans:
    ridge regression of plan means of joint/sum - 1, the coefficients shrunk towards their common
    value (`interaction`), the strength chosen by leaving out one plan at a time. Pairs that no
    training plan has take the common value. `ridge` is in units of the mean squared norm of a
    plan's features. Both are without intervals. Kept positive as in `affine_sum`.
    """
    training.require(3)
    sums = _positive_sums(singles, training)
    features = _pair_features(singles.values, training.membership)
    total = features.sum(axis=1)
    if not np.any(total > 0):
        raise NotDefinedError("no training plan has two steps of non-zero single error")
    kernel = features @ features.T
    target = (training.joint / sums).mean(axis=1) - 1

    def projector(ridge: float) -> Floats:
        """Give the matrix of dual ridge regression with the common value left unpenalised."""
        inverse = np.linalg.inv(
            kernel + ridge * np.trace(kernel) / len(kernel) * np.eye(len(kernel))
        )
        shared = inverse @ total
        return np.asarray(inverse - np.outer(shared, shared) / (total @ shared), dtype=np.float64)

    def loss(ridge: float) -> float:
        """Sum the squares of leave-one-plan-out residuals, in closed form."""
        matrix = projector(ridge)
        return float(np.sum((matrix @ target / np.diag(matrix)) ** 2))

    ridge = float(min(_RIDGES, key=loss))
    weights = projector(ridge) @ target
    left = target - kernel @ weights - ridge * np.trace(kernel) / len(kernel) * weights
    common = float(total @ left / (total @ total))
    coefficients = common + features.T @ weights
    least = 0.5 * float(training.joint.min())

    def predict(membership: Floats) -> Floats:
        roots = np.sqrt(singles.values)
        matrix = np.zeros((len(roots), len(roots)))
        matrix[np.triu_indices(len(roots), 1)] = coefficients
        used = membership[:, :, None] * roots
        added = np.einsum("pkn,kl,pln->pn", used, matrix, used, optimize=True)
        return np.asarray(np.maximum(membership @ singles.values + added, least), dtype=np.float64)

    fitted = {"interaction": common, "ridge": ridge}
    return Fitted(predict, {name: Interval(v, v, v) for name, v in fitted.items()})


def _pair_features(values: Floats, membership: Floats) -> Floats:
    """Average sqrt(m_k m_l) / sum over samples, for pairs k < l of a plan's cells: (P, pairs)."""
    roots = np.sqrt(values)
    sums = membership @ values
    shared = np.einsum("kn,ln,pn->pkl", roots, roots, 1 / sums, optimize=True) / values.shape[1]
    shared *= membership[:, :, None] * membership[:, None, :]
    first, second = np.triu_indices(len(values), 1)
    return np.asarray(shared[:, first, second], dtype=np.float64)


def _positive_sums(singles: SingleErrors, training: Training) -> Floats:
    sums: Floats = training.membership @ singles.values
    if not np.all(sums > 0):
        raise NotDefinedError("all single errors of a training plan are zero for some sample")
    return sums


PARAMETER_FREE = frozenset({"sum", "root_sum_squares", "gram"})
PREDICTORS: Mapping[str, Predictor] = {
    "sum": sum_,
    "root_sum_squares": root_sum_squares,
    "power_sum": power_sum,
    "gram": gram,
    "affine_sum": affine_sum,
    "pairwise": pairwise,
}
