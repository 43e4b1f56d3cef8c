"""How far a run is from the reference run, or how like it, per sample.

Every function takes two tensors of equal shape (n, ...), latents or images in [0, 1], and returns n
values; nothing is averaged over samples.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

SSIM_SIDE = 11  # pixels that the Gaussian window is wide
MS_SSIM_SIDE = SSIM_SIDE * 2**4  # at the fifth scale the window must still fit


def mean_squared_error(x: Tensor, reference: Tensor) -> Tensor:
    """Mean over all elements of the squared difference."""
    return (x.double() - reference.double()).square().flatten(1).mean(1)


def root_mean_squared_error(x: Tensor, reference: Tensor) -> Tensor:
    """Square root of the mean squared difference, in the units of `x`."""
    return mean_squared_error(x, reference).sqrt()


def cosine(x: Tensor, reference: Tensor) -> Tensor:
    """Cosine of the angle between the samples as vectors; 1 between two zeros, 0 if one is zero."""
    a, b = x.double().flatten(1), reference.double().flatten(1)
    lengths = a.norm(dim=1) * b.norm(dim=1)
    found = (a * b).sum(1) / lengths.where(lengths > 0, torch.ones_like(lengths))
    return torch.where((a == b).all(1), torch.ones_like(found), found).clamp(-1, 1)


def psnr(x: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of images in [0, 1]; infinite where they are identical."""
    return -10 * mean_squared_error(x, reference).log10()


def ssim(x: Tensor, reference: Tensor) -> Tensor:
    """SSIM of images (n, 3, H, W) in [0, 1] (Wang et al. 2004): Gaussian windows of sigma 1.5.

    torchmetrics averages over all pixels of the mirrored image, others crop a border of 5 pixels.
    """
    found = structural_similarity_index_measure(
        x.double(), reference.double(), data_range=1.0, reduction="none"
    )
    assert isinstance(found, Tensor)
    return found.reshape(len(x))


def ms_ssim(x: Tensor, reference: Tensor) -> Tensor:
    """SSIM over five scales (Wang et al. 2003), for images of at least 176 pixels a side.

    Negative terms are set to zero, as their fractional powers are not real.
    """
    found = multiscale_structural_similarity_index_measure(
        x.double(), reference.double(), data_range=1.0, reduction="none", normalize="relu"
    )
    return found.reshape(len(x))


def one_minus_ssim(x: Tensor, reference: Tensor) -> Tensor:
    """1 - `ssim`, an error."""
    return (1 - ssim(x, reference)).clamp(min=0)


LATENT_METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "latent_rmse": root_mean_squared_error,
    "latent_mse": mean_squared_error,
}
IMAGE_METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "image_rmse": root_mean_squared_error,
    "one_minus_ssim": one_minus_ssim,
}
