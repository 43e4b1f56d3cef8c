"""Stable Diffusion XL (`StableDiffusionXLPipeline`): a convolutional UNet, two CLIP encoders."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor, nn

from tmpdiff_bench.pipelines.base import Conditioning, SamplerState
from tmpdiff_bench.pipelines.guided import GuidedLoop, scheduler_copy, too_long
from tmpdiff_bench.pipelines.quantized import quantized_layers
from tmpdiff_bench.pipelines.solver import Solver


class SdxlStepwise:
    """A `StableDiffusionXLPipeline` as a `StepwisePipeline`, at its native resolution, told that
    images are of that size and uncropped.
    """

    def __init__(self, pipeline: StableDiffusionXLPipeline, *, steps: int, guidance: float) -> None:
        self.pipeline = pipeline
        self.denoiser: nn.Module = pipeline.unet
        self.steps, self.guidance = steps, guidance
        size = pipeline.default_sample_size
        self.latent_shape = (pipeline.unet.config.in_channels, size, size)
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
        """Convolutions of the residual blocks and resamplers, attention and feed-forward
        projections; what brings the timestep into a residual block stays.
        """
        return quantized_layers(self.denoiser)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        guided = self.guidance > 1
        context, no_context, pooled, no_pooled = self.pipeline.encode_prompt(
            list(prompts), do_classifier_free_guidance=guided
        )
        sizes = self.pipeline._get_add_time_ids(
            self.resolution,
            (0, 0),
            self.resolution,
            dtype=context.dtype,
            text_encoder_projection_dim=pooled.shape[-1],
        )
        sizes = sizes.to(context.device).repeat(len(context), 1)
        positive = {"context": context, "text_embeds": pooled, "time_ids": sizes}
        negative = {"context": no_context, "text_embeds": no_pooled, "time_ids": sizes}
        return Conditioning(positive, negative if guided else {})

    def truncated(self, prompts: Sequence[str]) -> list[str]:
        """The prompts that a tokenizer cuts."""
        tokenizers = (self.pipeline.tokenizer, self.pipeline.tokenizer_2)
        return too_long(list(prompts), [(t, t.model_max_length) for t in tokenizers])

    def initial_state(self, noise: Tensor) -> SamplerState:
        dtype, device = self.pipeline.unet.dtype, self.pipeline.device
        return self._loop.solver.initial_state(noise.to(device=device, dtype=dtype))

    @torch.no_grad()
    def step(
        self, state: SamplerState, step: int, denoiser: nn.Module, conditioning: Conditioning
    ) -> SamplerState:
        embedded = dict(conditioning.for_network())
        context = embedded.pop("context")

        def predict(latents: Tensor, timesteps: Tensor) -> Tensor:
            prediction: Tensor = denoiser(
                latents,
                timesteps,
                encoder_hidden_states=context,
                added_cond_kwargs=embedded,
                return_dict=False,
            )[0]
            return prediction

        return self._loop.step(state, step, predict)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        vae = self.pipeline.vae
        scaled = latents / vae.config.scaling_factor
        mean, deviation = vae.config.get("latents_mean"), vae.config.get("latents_std")
        if mean is not None and deviation is not None:
            mean, deviation = (scaled.new_tensor(x).view(1, -1, 1, 1) for x in (mean, deviation))
            scaled = latents * deviation / vae.config.scaling_factor + mean
        images = vae.decode(scaled.to(vae.dtype), return_dict=False)[0]
        clipped: Tensor = (images / 2 + 0.5).clamp(0, 1)
        return clipped.float()
