"""Shared fixtures: a small untrained pipeline of the real classes, so that tests cost little."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from tmpdiff_bench.zoo.sd3 import build_pipeline
from tmpdiff_bench.zoo.vae import build_vae


@pytest.fixture(scope="session")
def untrained_sd3() -> StableDiffusion3Pipeline:
    """The embedded architecture with random weights, none of them zero (adaLN gates included)."""
    pipeline = build_pipeline(build_vae(), seed=0)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in pipeline.transformer.parameters():
            if not parameter.any():
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    pipeline.vae.register_to_config(scaling_factor=0.7, shift_factor=0.1)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@dataclass(frozen=True)
class SmallDisk:
    """A tmpfs of 40 KiB."""

    folder: Path

    def enlarge(self) -> None:
        """Make room."""
        subprocess.run(["mount", "-o", "remount,size=16m", str(self.folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path):
    """A real disk to fill."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a tmpfs takes root")  # no other way to fill a disk without harm
    yield SmallDisk(tmp_path)
    subprocess.run(["umount", str(tmp_path)], check=True)
