"""Stable Diffusion 3 (`StableDiffusion3Pipeline`): MMDiT with flow matching."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import (
    calculate_shift,
    retrieve_timesteps,
)
from torch import Tensor, nn

from tmpdiff_bench.pipelines.base import Conditioning, SamplerState
from tmpdiff_bench.pipelines.guided import GuidedLoop, scheduler_copy, too_long
from tmpdiff_bench.pipelines.quantized import quantized_layers
from tmpdiff_bench.pipelines.solver import Solver

_DEFAULT_T5_LENGTH = 256  # of `StableDiffusion3Pipeline.__call__`


class Sd3Stepwise:
    """A `StableDiffusion3Pipeline` as a `StepwisePipeline`, at its native resolution.

    `t5_length` is the pipeline's `max_sequence_length`; by default the shorter of its default
    and what the tokenizer says.
    """

    def __init__(
        self,
        pipeline: StableDiffusion3Pipeline,
        *,
        steps: int,
        guidance: float,
        t5_length: int | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.denoiser: nn.Module = pipeline.transformer
        self.steps, self.guidance = steps, guidance
        tokenizer = pipeline.tokenizer_3
        limit = tokenizer.model_max_length if tokenizer is not None else _DEFAULT_T5_LENGTH
        self.t5_length = t5_length or min(_DEFAULT_T5_LENGTH, limit)
        size = pipeline.default_sample_size
        self.latent_shape = (pipeline.transformer.config.in_channels, size, size)
        self._loop = GuidedLoop(Solver(self._scheduler()), guidance)

    def _scheduler(self) -> object:
        scheduler = scheduler_copy(self.pipeline)
        shift = {}
        if scheduler.config.get("use_dynamic_shifting"):
            tokens = (self.latent_shape[1] // self.pipeline.patch_size) ** 2
            names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
            shift["mu"] = calculate_shift(tokens, *(scheduler.config[name] for name in names))
        retrieve_timesteps(scheduler, self.steps, self.pipeline.device, **shift)
        return scheduler

    @property
    def resolution(self) -> tuple[int, int]:
        size = self.latent_shape[1] * self.pipeline.vae_scale_factor
        return size, size

    def nfe(self, step: int) -> int:
        return self._loop.nfe(step)

    @property
    def quantized(self) -> tuple[str, ...]:
        """Attention and feed-forward projections; adaLN modulation and norms stay."""
        return quantized_layers(self.denoiser)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        guided = self.guidance > 1
        context, no_context, pooled, no_pooled = self.pipeline.encode_prompt(
            list(prompts),
            None,
            None,
            do_classifier_free_guidance=guided,
            max_sequence_length=self.t5_length,
        )
        positive = {"encoder_hidden_states": context, "pooled_projections": pooled}
        negative = {"encoder_hidden_states": no_context, "pooled_projections": no_pooled}
        return Conditioning(positive, negative if guided else {})

    def truncated(self, prompts: Sequence[str]) -> list[str]:
        """The prompts that a tokenizer cuts."""
        pipe = self.pipeline
        limits = [(pipe.tokenizer, pipe.tokenizer_max_length)]
        limits += [(pipe.tokenizer_3, self.t5_length)] if pipe.tokenizer_3 is not None else []
        return too_long(list(prompts), limits)

    def initial_state(self, noise: Tensor) -> SamplerState:
        dtype, device = self.pipeline.transformer.dtype, self.pipeline.device
        return SamplerState(noise.to(device=device, dtype=dtype), {})

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

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        config = self.pipeline.vae.config
        images = self.pipeline.vae.decode(
            latents / config.scaling_factor + config.shift_factor, return_dict=False
        )[0]
        clipped: Tensor = (images / 2 + 0.5).clamp(0, 1)
        return clipped.float()
