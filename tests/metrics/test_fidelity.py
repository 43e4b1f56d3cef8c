"""Fidelity metrics against scikit-image and plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from tmpdiff_bench.metrics import IMAGE_METRICS, LATENT_METRICS


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 3, 64, 64, generator=generator)
    return x, (x + 0.1 * torch.randn(x.shape, generator=generator)).clamp(0, 1)


def test_errors_against_numpy(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, y = (t.double().numpy() for t in pair)
    expected = ((x - y) ** 2).reshape(3, -1).mean(1)
    assert LATENT_METRICS["latent_mse"](*pair).numpy() == pytest.approx(expected)
    assert LATENT_METRICS["latent_rmse"](*pair).numpy() == pytest.approx(np.sqrt(expected))
    assert IMAGE_METRICS["image_rmse"](*pair).numpy() == pytest.approx(np.sqrt(expected))


def test_ssim_against_scikit_image(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    found = IMAGE_METRICS["one_minus_ssim"](*pair).numpy()
    for x, y, value in zip(*(t.double().numpy() for t in pair), found, strict=True):
        similarity = structural_similarity(
            x,
            y,
            channel_axis=0,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert value == pytest.approx(1 - similarity, abs=2e-3)


def test_a_run_is_no_error_to_itself(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    for metric in (*LATENT_METRICS.values(), *IMAGE_METRICS.values()):
        assert metric(pair[0], pair[0]).tolist() == pytest.approx([0, 0, 0], abs=1e-12)
        assert (metric(*pair) > 0).all()


def test_tiny_differences_survive() -> None:
    """1 - SSIM of nearly equal images is not lost to rounding."""
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)).double()
    small, smaller = (IMAGE_METRICS["one_minus_ssim"](x + d, x) for d in (1e-4, 1e-5))
    assert 0 < float(smaller) < float(small) < 1e-4
