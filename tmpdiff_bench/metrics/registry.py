"""Metrics by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from torch import Tensor

from tmpdiff_bench.errors import unknown
from tmpdiff_bench.metrics import scene, similarity
from tmpdiff_bench.metrics.base import Comparison, Features, Measured, Metric, NotAvailableError
from tmpdiff_bench.metrics.features import (
    INCEPTION_SIDE,
    SCENES_SIDE,
    inception_features,
    inception_weights,
    resize_name,
    scenes_features,
)
from tmpdiff_bench.metrics.fidelity import (
    mean_squared_error,
    one_minus_ssim,
    root_mean_squared_error,
)
from tmpdiff_bench.metrics.perceptual import lpips_distance, lpips_scenes, lpips_weights
from tmpdiff_bench.metrics.sets import Array, frechet_of_features, kernel_distance
from tmpdiff_bench.metrics.weights import scenes_weights


def _pairwise(
    name: str,
    of: Literal["images", "latents"],
    function: Callable[[Tensor, Tensor], Tensor],
    unit: str,
    *,
    identical: float = 0,
    **options: Any,
) -> Metric:
    """A metric of a function of two tensors that gives one value per sample."""

    def measure(comparison: Comparison) -> Measured:
        found = function(comparison.x, comparison.reference)
        return Measured(found.detach().cpu().double().numpy())

    better = identical != 0  # similarities end at 1 or infinity, distances at 0
    return Metric(name, of, "sample", better, unit, measure, identical, symmetric=True, **options)


def _of_sets(
    name: str,
    distance: Callable[[Array, Array], float],
    network: Features,
    side: int,
    *,
    identical: float | None,
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
        "images",
        "set",
        higher_is_better=False,
        unit="squared feature units" if distance is frechet_of_features else "1",
        measure=measure,
        identical=identical,
        symmetric=True,
        packages=("clean-fid", "pillow", "torch"),
        resize=resize_name(side),
        **options,
    )


def _shown(name: str, measure: Callable[[Comparison], Measured]) -> Metric:
    """A metric of the images and what was asked of them; the reference plays no part."""
    return Metric(
        name,
        "images",
        "sample",
        higher_is_better=True,
        unit="1",
        measure=measure,
        identical=None,
        symmetric=False,
        packages=("torch",),
        weights=scenes_weights,
        only=scene.SIDE,
    )


_TM = ("torchmetrics",)
_LPIPS = ("lpips", "torch")
_SSIM: dict[str, Any] = {"packages": _TM, "smallest": similarity.SSIM_SIDE}
_ALL = (
    _pairwise("latent_rmse", "latents", root_mean_squared_error, "latent units"),
    _pairwise("latent_mse", "latents", mean_squared_error, "squared latent units"),
    _pairwise("latent_cosine", "latents", similarity.cosine, "1", identical=1),
    _pairwise("image_rmse", "images", root_mean_squared_error, "range of pixels"),
    _pairwise("psnr", "images", similarity.psnr, "dB", identical=float("inf")),
    _pairwise("ssim", "images", similarity.ssim, "1", identical=1, **_SSIM),
    _pairwise("one_minus_ssim", "images", one_minus_ssim, "1", **_SSIM),
    _pairwise(
        "ms_ssim",
        "images",
        similarity.ms_ssim,
        "1",
        identical=1,
        packages=_TM,
        smallest=similarity.MS_SSIM_SIDE,
    ),
    _pairwise(
        "lpips",
        "images",
        lpips_distance("alex"),
        "1",
        packages=_LPIPS,
        weights=lambda: lpips_weights("alex"),
        smallest=32,
    ),
    _pairwise(
        "lpips-vgg",
        "images",
        lpips_distance("vgg"),
        "1",
        packages=_LPIPS,
        weights=lambda: lpips_weights("vgg"),
        smallest=16,
    ),
    _pairwise(
        "lpips-scenes",
        "images",
        lpips_scenes,
        "1",
        packages=_LPIPS,
        weights=scenes_weights,
        smallest=8,
    ),
    _shown("scene_objects", scene.objects),
    _shown("scene_all", scene.everything),
    _of_sets(
        "fid",
        frechet_of_features,
        inception_features,
        INCEPTION_SIDE,
        identical=0,
        weights=inception_weights,
    ),
    _of_sets(
        "kid",
        kernel_distance,
        inception_features,
        INCEPTION_SIDE,
        identical=None,
        weights=inception_weights,
    ),
    _of_sets(
        "fid-scenes",
        frechet_of_features,
        scenes_features,
        SCENES_SIDE,
        identical=0,
        weights=scenes_weights,
    ),
    _of_sets(
        "kid-scenes",
        kernel_distance,
        scenes_features,
        SCENES_SIDE,
        identical=None,
        weights=scenes_weights,
    ),
)
METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _ALL}


def get_metric(name: str) -> Metric:
    """The metric of a name. Raises `UsageError` with the nearest name for an unknown one."""
    if name not in METRICS:
        raise unknown("metric", name, METRICS)
    return METRICS[name]
