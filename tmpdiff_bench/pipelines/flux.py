"""FLUX.1 (`FluxPipeline`): two-stream and one-stream blocks with flow matching."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps
from torch import Tensor, nn

from tmpdiff_bench.pipelines.base import Conditioning, SamplerState
from tmpdiff_bench.pipelines.guided import GuidedPipeline

_DEFAULT_T5_LENGTH = 512  # of `FluxPipeline.__call__`


class FluxStepwise(GuidedPipeline):
    """A `FluxPipeline` as a `StepwisePipeline`, at the resolution that its VAE was trained for.

    `guidance` is the scale that a guidance-distilled transformer is told (FLUX.1-dev: one pass).
    Other transformers are guided by a second pass with an empty prompt: the pipeline's
    `true_cfg_scale` with `negative_prompt=""`. Latents are packed for the network alone.
    `t5_length` is the pipeline's `max_sequence_length`, `more` as in `GuidedPipeline`.
    """

    def __init__(
        self, pipeline: FluxPipeline, *, guidance: float, t5_length: int | None = None, **more: Any
    ) -> None:
        self.t5_length = t5_length or min(_DEFAULT_T5_LENGTH, pipeline.tokenizer_2.model_max_length)
        size = 2 * (pipeline.vae.config.sample_size // (2 * pipeline.vae_scale_factor))
        self._distilled = bool(pipeline.transformer.config.guidance_embeds)
        super().__init__(
            pipeline,
            (pipeline.transformer.config.in_channels // 4, size, size),
            guidance=guidance,
            scale=1.0 if self._distilled else guidance,
            **more,
        )
        self._places = pipeline._prepare_latent_image_ids(
            1, size // 2, size // 2, self.device, self._dtype
        )

    def _set_timesteps(self, scheduler: Any) -> None:
        config = scheduler.config
        shift = calculate_shift(
            (self.latent_shape[1] // 2) ** 2,
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
        own = config.get("use_flow_sigmas")
        sigmas = None if own else np.linspace(1.0, 1 / self.steps, self.steps)
        retrieve_timesteps(scheduler, self.steps, self.device, sigmas=sigmas, mu=shift)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        guided = self._loop.passes == 2
        positive = self._encoded(list(prompts))
        return Conditioning(positive, self._encoded([""] * len(prompts)) if guided else {})

    def _encoded(self, prompts: list[str]) -> dict[str, Tensor]:
        context, pooled, _ = self.pipeline.encode_prompt(
            prompts, None, max_sequence_length=self.t5_length, **self._encoding()
        )
        return {"encoder_hidden_states": context, "pooled_projections": pooled}

    def _limits(self) -> list[tuple[Any, int]]:
        pipe = self.pipeline
        return [(pipe.tokenizer, pipe.tokenizer_max_length), (pipe.tokenizer_2, self.t5_length)]

    @torch.no_grad()
    def step(
        self, state: SamplerState, step: int, denoiser: nn.Module, conditioning: Conditioning
    ) -> SamplerState:
        embedded = conditioning.for_network()
        words = embedded["encoder_hidden_states"]
        text_places = torch.zeros(words.shape[1], 3, device=words.device, dtype=words.dtype)

        def predict(latents: Tensor, timesteps: Tensor) -> Tensor:
            n, channels, height, width = latents.shape
            told = latents.new_full((n,), self.guidance, dtype=torch.float32)
            velocity = denoiser(
                hidden_states=self.pipeline._pack_latents(latents, n, channels, height, width),
                timestep=timesteps.to(latents.dtype) / 1000,
                guidance=told if self._distilled else None,
                txt_ids=text_places,
                img_ids=self._places,
                return_dict=False,
                **embedded,
            )[0]
            factor = self.pipeline.vae_scale_factor
            unpacked: Tensor = self.pipeline._unpack_latents(
                velocity, height * factor, width * factor, factor
            )
            return unpacked

        return self._loop.step(state, step, predict)

    def _unscaled(self, latents: Tensor) -> Tensor:
        shift: float = self.pipeline.vae.config.shift_factor
        return super()._unscaled(latents) + shift
