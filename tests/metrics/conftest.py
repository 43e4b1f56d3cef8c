"""Pairs of images that metrics compare: Scenes, and the same disturbed."""

from __future__ import annotations

import pytest
import torch

from tmpdiff_bench.zoo.scenes import render, sample_scenes


@pytest.fixture(scope="session")
def renders() -> torch.Tensor:
    """Forty images (40, 3, 64, 64) in [0, 1]."""
    return torch.from_numpy(render(sample_scenes(40, seed=3, split="test")))


@pytest.fixture(scope="session")
def noisy(renders: torch.Tensor) -> torch.Tensor:
    """The same images with noise."""
    noise = torch.randn(renders.shape, generator=torch.Generator().manual_seed(0))
    return (renders + 0.1 * noise).clamp(0, 1)
