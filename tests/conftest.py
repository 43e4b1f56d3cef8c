"""Shared fixtures: small untrained pipelines of the real classes, so that tests cost little."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    FluxPipeline,
    PixArtSigmaPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
)
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from tmpdiff_bench.zoo import flux, pixart, sd3, sdxl
from tmpdiff_bench.zoo.latents import build_vae
from tmpdiff_bench.zoo.text import build_t5_encoder, lower_case_tokenizer

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """Headless Chromium with a profile of its own."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("needs chromium and chromedriver")  # no page can be opened without a browser
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(autouse=True)
def modes_are_as_they_were() -> Iterator[None]:
    """A mode of torch that a test leaves behind would change all that follow."""
    yield
    left = torch.is_inference_mode_enabled() or not torch.is_grad_enabled()
    torch.set_grad_enabled(True)
    assert not left


def without_zeros(pipeline: Any) -> Any:
    """The pipeline, with all that training begins at zero (gates, last layers) at small values."""
    generator = torch.Generator().manual_seed(7)
    denoiser = getattr(pipeline, "transformer", None) or pipeline.unet
    with torch.no_grad():
        for parameter in denoiser.parameters():
            if not parameter.any():
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def untrained_sd3() -> StableDiffusion3Pipeline:
    """The embedded architecture with random weights, none of them zero (adaLN gates included)."""
    pipeline = sd3.build_pipeline(build_vae(), seed=0)
    pipeline.vae.register_to_config(scaling_factor=0.7, shift_factor=0.1)
    return without_zeros(pipeline)


@pytest.fixture(scope="session")
def untrained_flux(untrained_sd3: StableDiffusion3Pipeline) -> FluxPipeline:
    torch.manual_seed(1)
    tokenizer = lower_case_tokenizer()
    encoder = build_t5_encoder(tokenizer)
    vae = untrained_sd3.vae
    return without_zeros(flux.build_pipeline(untrained_sd3, vae, tokenizer, encoder, seed=0))


@pytest.fixture(scope="session")
def untrained_pixart(untrained_sd3: StableDiffusion3Pipeline) -> PixArtSigmaPipeline:
    torch.manual_seed(1)
    tokenizer = lower_case_tokenizer()
    encoder = build_t5_encoder(tokenizer)
    return without_zeros(pixart.build_pipeline(untrained_sd3.vae, tokenizer, encoder, seed=0))


@pytest.fixture(scope="session")
def untrained_sdxl(untrained_sd3: StableDiffusion3Pipeline) -> StableDiffusionXLPipeline:
    return without_zeros(sdxl.build_pipeline(untrained_sd3, untrained_sd3.vae, seed=0))


@pytest.fixture(scope="session")
def untrained(request: pytest.FixtureRequest) -> Callable[[str], Any]:
    """The untrained pipeline of a family, by name."""
    return lambda family: request.getfixturevalue(f"untrained_{family}")


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
