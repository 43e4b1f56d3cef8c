"""Values of metrics for images or latents against those of the reference run."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.metrics.base import Comparison, Metric, MetricValue
from tmpdiff_bench.metrics.registry import METRICS, get_metric
from tmpdiff_bench.zoo.captions import Requirement

_ROUNDING = 1e-3  # decoders end a hair outside [0, 1] at low precision


def evaluate_images(
    images: Tensor,
    reference: Tensor,
    metrics: Sequence[str] | None = None,
    *,
    requirements: Sequence[Requirement] | None = None,
) -> dict[str, MetricValue]:
    """Values by metric name, for images (n, 3, H, W) in [0, 1] against the reference run's.

    `metrics`: all that compare images where not given. `requirements`: what the prompts ask, for
    scene accuracy. Metrics of sets also take another number of reference images. What can't be
    had here has its reason in `not_available`. Raises `UsageError` for unknown metrics and for
    images that are not finite, outside [0, 1] or of shapes that do not match.
    """
    chosen = _chosen(metrics, "images")
    for name, batch in (("images", images), ("reference images", reference)):
        _check_finite(name, batch)
        if batch.shape[1] != 3:
            raise UsageError(f"{name} have {batch.shape[1]} channels, not 3")
        if batch.min() < -_ROUNDING or batch.max() > 1 + _ROUNDING:
            raise UsageError(
                f"{name} reach from {float(batch.min()):.3g} to {float(batch.max()):.3g}, "
                "not from 0 to 1"
            )
    return _values(chosen, Comparison(images.clamp(0, 1), reference.clamp(0, 1), requirements))


def evaluate_latents(
    latents: Tensor, reference: Tensor, metrics: Sequence[str] | None = None
) -> dict[str, MetricValue]:
    """Values by metric name, for final latents (n, c, h, w) against the reference run's.

    Raises `UsageError` as `evaluate_images` does.
    """
    chosen = _chosen(metrics, "latents")
    _check_finite("latents", latents)
    _check_finite("reference latents", reference)
    return _values(chosen, Comparison(latents, reference))


def _chosen(names: Sequence[str] | None, of: str) -> list[Metric]:
    if names is None:
        return [metric for metric in METRICS.values() if metric.of == of]
    if isinstance(names, str):
        raise UsageError(f"metrics are a list of names, as in metrics=[{names!r}]")
    chosen = [get_metric(name) for name in names]
    for metric in chosen:
        if metric.of != of:
            raise UsageError(f"{metric.name} compares {metric.of}: use evaluate_{metric.of}")
    return chosen


def _check_finite(name: str, batch: Tensor) -> None:
    # latents may be packed, or those of videos
    if (batch.ndim < 2 if "latents" in name else batch.ndim != 4) or not len(batch):
        form = "(n, ...)" if "latents" in name else "(n, channels, H, W)"
        raise UsageError(f"{name} have shape {tuple(batch.shape)}, not {form}, n > 0")
    rows = (~batch.isfinite()).flatten(1).any(1).nonzero()[:, 0].tolist()
    if rows:
        raise UsageError(f"{name} hold values that are not finite, in rows {rows[:8]}")


def _values(chosen: Sequence[Metric], comparison: Comparison) -> dict[str, MetricValue]:
    shapes = tuple(comparison.x.shape), tuple(comparison.reference.shape)
    for metric in chosen:
        if metric.per == "sample" and shapes[0] != shapes[1]:
            raise UsageError(
                f"{metric.name} compares sample by sample, but the shapes are "
                f"{shapes[0]} and {shapes[1]}"
            )
    return {metric.name: metric(comparison) for metric in chosen}
