"""A small untrained pipeline whose plans may be changed, and how it is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from tmpdiff_bench import deploy
from tmpdiff_bench.deploy.dispatch import PlannedDenoiser

PROMPTS = ["a red circle", "two blue stars"]
Call = Callable[..., Tensor]


@pytest.fixture
def pipe(untrained_sd3: StableDiffusion3Pipeline) -> Any:
    """A pipeline of its own around the shared models; no plan is left behind."""
    own = StableDiffusion3Pipeline(**untrained_sd3.components)
    own.scheduler = type(own.scheduler).from_config(own.scheduler.config)
    own.set_progress_bar_config(disable=True)
    yield own
    if isinstance(getattr(own.transformer, "_orig_mod", own.transformer), PlannedDenoiser):
        deploy.remove(own)


def call(pipe: Any, steps: int = 4, **options: Any) -> Tensor:
    """Final latents (n, c, h, w) of a call from fixed noise."""
    settings: dict[str, Any] = {
        "prompt": PROMPTS,
        "num_inference_steps": steps,
        "guidance_scale": 4.0,
        "max_sequence_length": 32,
        "generator": torch.Generator().manual_seed(0),
        "output_type": "latent",
        **options,
    }
    found: Tensor = pipe(**settings).images
    return found
