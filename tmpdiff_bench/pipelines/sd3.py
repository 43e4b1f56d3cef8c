"""Stable Diffusion 3 (`StableDiffusion3Pipeline`): MMDiT with flow matching."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import (
    calculate_shift,
    retrieve_timesteps,
)
from torch import Tensor, nn

from tmpdiff_bench.pipelines.base import Conditioning, SamplerState
from tmpdiff_bench.pipelines.guided import GuidedPipeline

_DEFAULT_T5_LENGTH = 256  # of `StableDiffusion3Pipeline.__call__`


class Sd3Stepwise(GuidedPipeline):
    """A `StableDiffusion3Pipeline` as a `StepwisePipeline`, at its native resolution.

    `t5_length` is the pipeline's `max_sequence_length`; by default the shorter of its default
    and what the tokenizer says. `more` as in `GuidedPipeline`.
    """

    def __init__(
        self, pipeline: StableDiffusion3Pipeline, *, t5_length: int | None = None, **more: Any
    ) -> None:
        tokenizer = pipeline.tokenizer_3
        limit = tokenizer.model_max_length if tokenizer is not None else _DEFAULT_T5_LENGTH
        self.t5_length = t5_length or min(_DEFAULT_T5_LENGTH, limit)
        size = pipeline.default_sample_size
        super().__init__(pipeline, (pipeline.transformer.config.in_channels, size, size), **more)

    def _set_timesteps(self, scheduler: Any) -> None:
        shift = {}
        if scheduler.config.get("use_dynamic_shifting"):
            tokens = (self.latent_shape[1] // self.pipeline.patch_size) ** 2
            names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
            shift["mu"] = calculate_shift(tokens, *(scheduler.config[name] for name in names))
        retrieve_timesteps(scheduler, self.steps, self.device, **shift)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        guided = self.guidance > 1
        context, no_context, pooled, no_pooled = self.pipeline.encode_prompt(
            list(prompts),
            None,
            None,
            do_classifier_free_guidance=guided,
            max_sequence_length=self.t5_length,
            **self._encoding(),
        )
        positive = {"encoder_hidden_states": context, "pooled_projections": pooled}
        negative = {"encoder_hidden_states": no_context, "pooled_projections": no_pooled}
        return Conditioning(positive, negative if guided else {})

    def _limits(self) -> list[tuple[Any, int]]:
        pipe = self.pipeline
        limits = [(pipe.tokenizer, pipe.tokenizer_max_length)]
        return limits + ([(pipe.tokenizer_3, self.t5_length)] if pipe.tokenizer_3 else [])

    @torch.no_grad()
    def step(
        self, state: SamplerState, step: int, denoiser: nn.Module, conditioning: Conditioning
    ) -> SamplerState:
        embedded = conditioning.for_network()

        def predict(latents: Tensor, timesteps: Tensor) -> Tensor:
            velocity: Tensor = denoiser(
                hidden_states=latents, timestep=timesteps, return_dict=False, **embedded
            )[0]
            return velocity

        return self._loop.step(state, step, predict)

    def _unscaled(self, latents: Tensor) -> Tensor:
        shift: float = self.pipeline.vae.config.shift_factor
        return super()._unscaled(latents) + shift
