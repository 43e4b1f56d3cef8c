"""Metrics by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from tmpdiff_bench.errors import UsageError, check_known
from tmpdiff_bench.metrics import fidelity
from tmpdiff_bench.metrics.base import (
    Comparison,
    Features,
    Measured,
    Metric,
    MetricValue,
    NotAvailableError,
)
from tmpdiff_bench.metrics.features import (
    INCEPTION_SIDE,
    SCENES_SIDE,
    Array,
    frechet_of_features,
    inception_features,
    inception_weights,
    kernel_distance,
    resize_name,
    scenes_features,
)
from tmpdiff_bench.metrics.perceptual import lpips_distance, lpips_scenes, lpips_weights
from tmpdiff_bench.metrics.weights import scenes_recogniser, scenes_weights
from tmpdiff_bench.zoo.captions import Requirement
from tmpdiff_bench.zoo.recogniser import Verdict, judge, read


def _pairwise(
    name: str, function: Callable[[Tensor, Tensor], Tensor], identical: float = 0, **options: Any
) -> Metric:
    """A metric of a function of two tensors that gives one value per sample."""

    def measure(comparison: Comparison) -> Measured:
        found = function(comparison.x, comparison.reference)
        return Measured(found.detach().cpu().double().numpy())

    better = identical != 0  # similarities end at 1 or infinity, distances at 0
    return Metric(name, measure, higher_is_better=better, identical=identical, **options)


def _of_sets(
    name: str,
    distance: Callable[[Array, Array], float],
    network: Features,
    side: int,
    **options: Any,
) -> Metric:
    """A metric of the features of two sets."""

    def measure(comparison: Comparison) -> Measured:
        smallest = min(len(comparison.x), len(comparison.reference))
        if smallest < 2:
            raise NotAvailableError(f"{name} takes two images or more on each side")
        x, y = comparison.features(network)
        few = f"{smallest} images for {x.shape[1]} features: compare at equal numbers only"
        biased = distance is frechet_of_features and smallest <= x.shape[1]
        return Measured(np.array([distance(x, y)]), few if biased else "")

    return Metric(
        name,
        measure,
        per="set",
        packages=("clean-fid", "pillow", "torch"),
        resize=resize_name(side),
        **options,
    )


def _shown(name: str, value: Callable[[Verdict], float]) -> Metric:
    """A metric of the images and what was asked of them; the reference plays no part."""

    def measure(comparison: Comparison) -> Measured:
        requirements = comparison.requirements
        if requirements is None:
            raise NotAvailableError("what the prompts require is known for Scenes prompts only")
        if len(requirements) != len(comparison.x):
            raise UsageError(f"{len(requirements)} requirements for {len(comparison.x)} images")
        readings = read(scenes_recogniser(str(comparison.x.device)), comparison.x.float())
        verdicts = map(judge, requirements, readings)
        return Measured(np.array([value(verdict) for verdict in verdicts]))

    return Metric(
        name,
        measure,
        higher_is_better=True,
        symmetric=False,
        packages=("torch",),
        weights=scenes_weights,
        only=SCENES_SIDE,
    )


_TM: dict[str, Any] = {"packages": ("torchmetrics",)}
_SSIM: dict[str, Any] = {**_TM, "smallest": fidelity.SSIM_SIDE}
_MS_SSIM: dict[str, Any] = {**_TM, "smallest": fidelity.MS_SSIM_SIDE}
_LPIPS: dict[str, Any] = {"packages": ("lpips", "torch")}
_SCENES: dict[str, Any] = {**_LPIPS, "weights": scenes_weights, "smallest": 8}
_RMSE = fidelity.root_mean_squared_error
_LATENTS: dict[str, Any] = {"of": "latents"}
_NETWORKS = {
    "": (inception_features, INCEPTION_SIDE, inception_weights),
    "-scenes": (scenes_features, SCENES_SIDE, scenes_weights),
}
_DISTANCES: tuple[tuple[str, Callable[[Array, Array], float], dict[str, Any]], ...] = (
    ("fid", frechet_of_features, {"identical": 0, "unit": "squared feature units"}),
    ("kid", kernel_distance, {}),
)
_ALL = (
    _pairwise("latent_rmse", _RMSE, unit="latent units", **_LATENTS),
    _pairwise("latent_mse", fidelity.mean_squared_error, unit="squared latent units", **_LATENTS),
    _pairwise("latent_cosine", fidelity.cosine, 1, **_LATENTS),
    _pairwise("image_rmse", _RMSE, unit="range of pixels"),
    _pairwise("psnr", fidelity.psnr, math.inf, unit="dB"),
    _pairwise("ssim", fidelity.ssim, 1, **_SSIM),
    _pairwise("one_minus_ssim", fidelity.one_minus_ssim, **_SSIM),
    _pairwise("ms_ssim", fidelity.ms_ssim, 1, **_MS_SSIM),
    *(
        _pairwise(
            name,
            lpips_distance(network),
            weights=partial(lpips_weights, network),
            smallest=smallest,
            **_LPIPS,
        )
        for name, network, smallest in (("lpips", "alex", 32), ("lpips-vgg", "vgg", 16))
    ),
    _pairwise("lpips-scenes", lpips_scenes, **_SCENES),
    # the share of the asked objects that each image shows: shape, colour and what else was said
    _shown("scene_objects", lambda verdict: verdict.found / verdict.asked),
    # 1 where an image shows all that was asked and no other object, else 0
    _shown("scene_all", lambda verdict: float(verdict.all)),
    *(
        _of_sets(name + suffix, distance, network, side, weights=weights, **options)
        for suffix, (network, side, weights) in _NETWORKS.items()
        for name, distance, options in _DISTANCES
    ),
)
METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _ALL}


def get_metric(name: str) -> Metric:
    """The metric of a name. Raises `UsageError` with the nearest name for an unknown one."""
    check_known("metric", name, METRICS)
    return METRICS[name]


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
