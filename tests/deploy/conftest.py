"""Small untrained pipelines whose plans may be changed, and how they are called."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor, nn

from tmpdiff_bench import deploy
from tmpdiff_bench.deploy.dispatch import PlannedDenoiser
from tmpdiff_bench.levels import LevelBank
from tmpdiff_bench.pipelines import quantized_layers
from tmpdiff_bench.plan import PrecisionPlan

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


def of_its_own(pipeline: Any, kind: type[Any] | None = None, **others: Any) -> Any:
    """The same models in a pipeline of the same or another class, the denoiser copied."""
    place = place_of(pipeline)
    own = {place: copy.deepcopy(getattr(pipeline, place))}
    watermark = {"add_watermarker": False} if place == "unet" else {}
    made = (kind or type(pipeline))(**{**pipeline.components, **own, **others}, **watermark)
    made.set_progress_bar_config(disable=True)
    return made


def place_of(pipeline: Any) -> str:
    """The denoiser's attribute."""
    return "unet" if hasattr(pipeline, "unet") else "transformer"


def call(pipe: Any, steps: int = 4, **options: Any) -> Tensor:
    """Final latents (n, c, h, w) of a call from fixed noise, those of flux as it packs them."""
    settings: dict[str, Any] = {
        "prompt": PROMPTS,
        "num_inference_steps": steps,
        "guidance_scale": 4.0,
        "generator": torch.Generator().manual_seed(0),
        "output_type": "latent",
        **({} if place_of(pipe) == "unet" else {"max_sequence_length": 32}),
        **options,
    }
    found: Tensor = pipe(**settings).images
    return found


def exchanged(pipe: Any, plan: PrecisionPlan, begin: int = 0, **options: Any) -> Tensor:
    """A call that begins with step `begin`, its denoiser exchanged by hand between the steps."""
    place, order, last = place_of(pipe), pipe.scheduler.order, len(plan) - 1
    own: nn.Module = getattr(pipe, place)
    bank = LevelBank(own, tuple(dict.fromkeys(plan)), quantized_layers(own))

    def exchange(_pipe: Any, iteration: int, _timestep: Any, inputs: Any) -> Any:
        setattr(pipe, place, bank[plan[min(begin + (iteration + 1) // order, last)]])
        return inputs

    setattr(pipe, place, bank[plan[begin]])
    try:
        return call(pipe, len(plan), callback_on_step_end=exchange, **options)
    finally:
        setattr(pipe, place, own)
