"""Feature vectors of images, and distances between sets of them, in float64.

Images are rounded to 8 bits first, as a folder of PNG files would hold them, then resized by
clean-fid in float32 (Parmar et al. 2022): values agree with those of the saved images.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from tmpdiff_bench.metrics.weights import INCEPTION, scenes_recogniser
from tmpdiff_bench.zoo.recogniser import Recogniser

SCENES_SIDE, INCEPTION_SIDE = 64, 299
_CHUNK = 32


def resize_name(side: int) -> str:
    """How `resized` is named in values."""
    return f"8 bit, clean-fid bicubic to {side} x {side}"


def resized(images: Tensor, side: int) -> Tensor:
    """Images (n, 3, H, W) in [0, 1] as (n, 3, side, side) in [0, 255], resized by clean-fid."""
    from cleanfid.resize import make_resizer

    resize = make_resizer("PIL", False, "bicubic", (side, side))
    pixels = (images.detach().cpu().double() * 255).round().clamp(0, 255).to(torch.uint8)
    rows = [resize(image) for image in pixels.permute(0, 2, 3, 1).numpy()]
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2)


class ScenesFeatures(nn.Module):
    """Images (n, 3, 64, 64) in [0, 255] to the recogniser's last stage, averaged over the image:
    (n, 96). For clean-fid it stands where Inception does, whose pooled last stage is used.
    """

    def __init__(self, recogniser: Recogniser) -> None:
        super().__init__()
        self.recogniser = recogniser

    def forward(self, images: Tensor) -> Tensor:
        return self.recogniser.features(images / 255)[-1].mean((2, 3))


def scenes_features(images: Tensor) -> NDArray[np.float64]:
    """Features (n, 96) of images (n, 3, H, W) in [0, 1]."""
    network = ScenesFeatures(scenes_recogniser(str(images.device)))
    return _features(network, images, SCENES_SIDE)


def inception_weights() -> dict[str, str]:
    """File and digest of clean-fid's Inception; raises `NotAvailableError` where it is absent."""
    return {INCEPTION.file: INCEPTION.find()[1]}


def inception_features(images: Tensor) -> NDArray[np.float64]:
    """Features (n, 2048) of images (n, 3, H, W) in [0, 1], of clean-fid's Inception.

    Raises `NotAvailableError` where its file is not in clean-fid's cache.
    """
    path, digest = INCEPTION.find()
    network = _inception(str(path.parent), digest, str(images.device))
    return _features(network, images, INCEPTION_SIDE)


@lru_cache(maxsize=1)
def _inception(folder: str, _digest: str, device: str) -> nn.Module:
    from cleanfid.inception_torchscript import InceptionV3W

    with warnings.catch_warnings():  # the published file is of a format that torch wants to end
        warnings.simplefilter("ignore", FutureWarning)
        network: nn.Module = InceptionV3W(folder, download=False, resize_inside=False)
    return network.to(device).eval()


def _features(network: Callable[..., Any], images: Tensor, side: int) -> NDArray[np.float64]:
    from cleanfid.fid import get_batch_features

    chunks = images.split(_CHUNK)
    bar = tqdm(chunks, desc="features", unit="batch", leave=False, disable=len(chunks) < 4)
    rows = [get_batch_features(resized(chunk, side), network, images.device) for chunk in bar]
    return np.concatenate(rows).astype(np.float64)


Array = NDArray[np.float64]
_ROWS = 1024  # of the kernel matrix at a time, which bounds memory


def frechet_distance(mean: Array, covariance: Array, mean_2: Array, covariance_2: Array) -> float:
    """Squared Fréchet distance of two Gaussians: |m - m'|² + Tr(C + C' - 2 (C C')^½).

    The trace of (C C')^½ is the sum of the singular values of C^½ C'^½: no square root of a
    product that is not symmetric, so no imaginary parts, and singular covariances are no special
    case (Dowson and Landau 1982; Heusel et al. 2017).
    """
    shared = np.linalg.svd(_root(covariance) @ _root(covariance_2), compute_uv=False).sum()
    gap = mean - mean_2
    total = gap @ gap + np.trace(covariance) + np.trace(covariance_2) - 2 * shared
    return max(0.0, float(total))  # below zero by rounding only


def frechet_of_features(x: Array, y: Array) -> float:
    """Fréchet distance of the Gaussians fitted to features (n, d) and (m, d); n, m at least 2.

    Biased upwards in small sets, the more so the more features there are.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    covariances = [np.atleast_2d(np.cov(z, rowvar=False)) for z in (x, y)]
    return frechet_distance(x.mean(0), covariances[0], y.mean(0), covariances[1])


def kernel_distance(x: Array, y: Array) -> float:
    """Kernel distance (KID): the unbiased squared maximum mean discrepancy with the kernel
    (x·y / d + 1)³, over all pairs (Binkowski et al. 2018); n, m at least 2.

    Zero in expectation for sets of one distribution, so single values can be negative. Published
    figures are often means over random subsets of 1000, which this equals in expectation.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    n, m = len(x), len(y)
    within_x = _kernel_sum(x, x) - _own_sum(x)
    within_y = _kernel_sum(y, y) - _own_sum(y)
    between = _kernel_sum(x, y) / (n * m)
    return float(within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * between)


def _kernel_sum(x: Array, y: Array) -> float:
    blocks = (x[start : start + _ROWS] for start in range(0, len(x), _ROWS))
    return float(sum(((block @ y.T / x.shape[1] + 1) ** 3).sum() for block in blocks))


def _own_sum(x: Array) -> float:
    """Sum of the kernel of each vector with itself."""
    return float((((x * x).sum(1) / x.shape[1] + 1) ** 3).sum())


def _root(covariance: Array) -> Array:
    """The symmetric square root of a positive semidefinite matrix."""
    values, vectors = np.linalg.eigh(covariance)
    root: Array = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return root
