"""How far a run is from the reference run, per sample, before and after decoding.

Every function takes two tensors of equal shape (n, ...) and returns n values, higher is worse;
nothing is averaged over samples.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure


def mean_squared_error(x: Tensor, reference: Tensor) -> Tensor:
    """Mean over all elements of the squared difference."""
    return (x.double() - reference.double()).square().flatten(1).mean(1)


def root_mean_squared_error(x: Tensor, reference: Tensor) -> Tensor:
    """Square root of the mean squared difference, in the units of `x`."""
    return mean_squared_error(x, reference).sqrt()


def one_minus_ssim(x: Tensor, reference: Tensor) -> Tensor:
    """1 - SSIM of images (n, 3, H, W) in [0, 1] (Wang et al. 2004; torchmetrics)."""
    ssim = structural_similarity_index_measure(
        x.double(), reference.double(), data_range=1.0, reduction="none"
    )
    assert isinstance(ssim, Tensor)
    return (1 - ssim).clamp(min=0)


LATENT_METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "latent_rmse": root_mean_squared_error,
    "latent_mse": mean_squared_error,
}
IMAGE_METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "image_rmse": root_mean_squared_error,
    "one_minus_ssim": one_minus_ssim,
}
