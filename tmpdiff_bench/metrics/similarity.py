"""Similarity to the reference, per sample: cosine of latents, PSNR, SSIM and MS-SSIM of images.

Functions of two tensors of equal shape (n, ...) that give n values, higher is better.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

from tmpdiff_bench.metrics.fidelity import mean_squared_error

SSIM_SIDE = 11  # pixels that the Gaussian window is wide
MS_SSIM_SIDE = SSIM_SIDE * 2**4  # at the fifth scale the window must still fit


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
