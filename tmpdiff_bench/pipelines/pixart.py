"""PixArt-Sigma (`PixArtSigmaPipeline`): a transformer with cross-attention to T5, DPM-Solver++."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import PixArtSigmaPipeline
from torch import Tensor, nn

from tmpdiff_bench.pipelines.base import Conditioning, SamplerState
from tmpdiff_bench.pipelines.guided import GuidedLoop, scheduler_copy, too_long
from tmpdiff_bench.pipelines.quantized import quantized_layers
from tmpdiff_bench.pipelines.solver import Solver

_DEFAULT_T5_LENGTH = 300  # of `PixArtSigmaPipeline.__call__`


class PixArtStepwise:
    """A `PixArtSigmaPipeline` as a `StepwisePipeline`, at its native resolution.

    Prompts are lower-cased, as the pipeline does, but not cleaned of web addresses and the like
    (`clean_caption=False`); the resolution is not binned.
    """

    def __init__(
        self,
        pipeline: PixArtSigmaPipeline,
        *,
        steps: int,
        guidance: float,
        t5_length: int | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.denoiser: nn.Module = pipeline.transformer
        self.steps, self.guidance = steps, guidance
        self.t5_length = t5_length or min(_DEFAULT_T5_LENGTH, pipeline.tokenizer.model_max_length)
        config = pipeline.transformer.config
        self.latent_shape = (config.in_channels, config.sample_size, config.sample_size)
        self._sigma_learned = config.out_channels // 2 == config.in_channels
        scheduler = scheduler_copy(pipeline)
        scheduler.set_timesteps(steps, device=pipeline.device)
        self._loop = GuidedLoop(Solver(scheduler), guidance)

    @property
    def resolution(self) -> tuple[int, int]:
        size = self.latent_shape[1] * self.pipeline.vae_scale_factor
        return size, size

    def nfe(self, step: int) -> int:
        return self._loop.nfe(step)

    @property
    def quantized(self) -> tuple[str, ...]:
        """Projections of both attentions and the feed-forward layers; the one modulation layer
        that all blocks share is outside of them.
        """
        return quantized_layers(self.denoiser)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        guided = self.guidance > 1
        context, mask, no_context, no_mask = self.pipeline.encode_prompt(
            list(prompts),
            do_classifier_free_guidance=guided,
            clean_caption=False,
            max_sequence_length=self.t5_length,
        )
        positive = {"encoder_hidden_states": context, "encoder_attention_mask": mask}
        negative = {"encoder_hidden_states": no_context, "encoder_attention_mask": no_mask}
        return Conditioning(positive, negative if guided else {})

    def truncated(self, prompts: Sequence[str]) -> list[str]:
        """The prompts that the tokenizer cuts."""
        lowered = self.pipeline._text_preprocessing(list(prompts))
        cut = set(too_long(lowered, [(self.pipeline.tokenizer, self.t5_length)]))
        return [p for p, text in zip(prompts, lowered, strict=True) if text in cut]

    def initial_state(self, noise: Tensor) -> SamplerState:
        dtype, device = self.pipeline.transformer.dtype, self.pipeline.device
        return self._loop.solver.initial_state(noise.to(device=device, dtype=dtype))

    @torch.no_grad()
    def step(
        self, state: SamplerState, step: int, denoiser: nn.Module, conditioning: Conditioning
    ) -> SamplerState:
        embedded: dict[str, Any] = conditioning.for_network()

        def predict(latents: Tensor, timesteps: Tensor) -> Tensor:
            prediction: Tensor = denoiser(
                latents,
                timestep=timesteps,
                added_cond_kwargs={"resolution": None, "aspect_ratio": None},
                return_dict=False,
                **embedded,
            )[0]
            return prediction.chunk(2, dim=1)[0] if self._sigma_learned else prediction

        return self._loop.step(state, step, predict)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        vae = self.pipeline.vae
        images = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
        clipped: Tensor = (images / 2 + 0.5).clamp(0, 1)
        return clipped.float()
