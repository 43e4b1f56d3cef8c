"""PSNR, SSIM, MS-SSIM and cosine against scikit-image and plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from tmpdiff_bench.metrics import IMAGE_METRICS
from tmpdiff_bench.metrics.fidelity import MS_SSIM_SIDE, cosine, ms_ssim, psnr, ssim


def test_psnr_against_scikit_image(renders: torch.Tensor, noisy: torch.Tensor) -> None:
    expected = [
        peak_signal_noise_ratio(y.double().numpy(), x.double().numpy(), data_range=1.0)
        for x, y in zip(noisy[:4], renders[:4], strict=True)
    ]
    assert psnr(noisy[:4], renders[:4]).tolist() == pytest.approx(expected, rel=1e-10)


def test_ssim_against_scikit_image(renders: torch.Tensor, noisy: torch.Tensor) -> None:
    """scikit-image drops a border of 5 pixels; on images mirrored by 5 that leaves all of them."""
    frame = ((0, 0), (5, 5), (5, 5))
    expected = [
        structural_similarity(
            np.pad(x.double().numpy(), frame, mode="reflect"),
            np.pad(y.double().numpy(), frame, mode="reflect"),
            channel_axis=0,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for x, y in zip(noisy[:4], renders[:4], strict=True)
    ]
    assert ssim(noisy[:4], renders[:4]).tolist() == pytest.approx(expected, rel=1e-9)
    assert IMAGE_METRICS["one_minus_ssim"](noisy[:4], renders[:4]).tolist() == pytest.approx(
        [1 - value for value in expected], rel=1e-9
    )


def ms_ssim_by_hand(x: np.ndarray, y: np.ndarray) -> float:
    """Five scales of one image (3, H, W), written out with scipy's Gaussian filter."""
    c1, c2 = 0.01**2, 0.03**2
    product = 1.0
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        if scale:
            h, w = (side // 2 * 2 for side in x.shape[1:])
            x, y = (z[:, :h, :w].reshape(3, h // 2, 2, w // 2, 2).mean((2, 4)) for z in (x, y))

        def smooth(z: np.ndarray) -> np.ndarray:
            return gaussian_filter(z, (0, 1.5, 1.5), mode="mirror", truncate=3.5)

        mx, my = smooth(x), smooth(y)
        contrast = (2 * (smooth(x * y) - mx * my) + c2) / (
            smooth(x * x) - mx**2 + smooth(y * y) - my**2 + c2
        )
        if scale < 4:  # contrast counts without the border, the last scale with it: torchmetrics
            product *= contrast[:, 5:-5, 5:-5].mean() ** weight
        else:
            product *= (contrast * (2 * mx * my + c1) / (mx**2 + my**2 + c1)).mean() ** weight
    return float(product)


def test_ms_ssim_by_hand(renders: torch.Tensor) -> None:
    x = torch.nn.functional.interpolate(renders[:2].double(), size=MS_SSIM_SIDE, mode="bilinear")
    y = (x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    expected = [ms_ssim_by_hand(a.numpy(), b.numpy()) for a, b in zip(x, y, strict=True)]
    assert 0.3 < expected[0] < 0.99
    assert ms_ssim(x, y).tolist() == pytest.approx(expected, rel=1e-6)


def test_cosine_against_numpy() -> None:
    x, y = torch.randn(2, 5, 16, 8, 8, generator=torch.Generator().manual_seed(0)).unbind()
    a, b = (z.double().flatten(1).numpy() for z in (x, y))
    expected = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    assert cosine(x, y).tolist() == pytest.approx(expected, rel=1e-12)
    assert cosine(x, -3 * x).tolist() == pytest.approx([-1] * 5)


def test_cosine_of_zeros() -> None:
    zero, one = torch.zeros(1, 4, 8, 8), torch.ones(1, 4, 8, 8)
    assert float(cosine(zero, zero)) == 1
    assert float(cosine(zero, one)) == 0
