"""Feature vectors of images for distances between sets, with clean-fid's resizing.

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
