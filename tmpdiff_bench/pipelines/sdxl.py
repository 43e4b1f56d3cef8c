"""Stable Diffusion XL (`StableDiffusionXLPipeline`): a convolutional UNet, two CLIP encoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor, nn

from tmpdiff_bench.pipelines.base import Conditioning, SamplerState
from tmpdiff_bench.pipelines.guided import GuidedPipeline


class SdxlStepwise(GuidedPipeline):
    """A `StableDiffusionXLPipeline` as a `StepwisePipeline`, at its native resolution, told that
    images are of that size and uncropped. `more` as in `GuidedPipeline`.
    """

    denoiser_name = "unet"

    def __init__(self, pipeline: StableDiffusionXLPipeline, **more: Any) -> None:
        size = pipeline.default_sample_size
        super().__init__(pipeline, (pipeline.unet.config.in_channels, size, size), **more)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        guided = self.guidance > 1
        context, no_context, pooled, no_pooled = self.pipeline.encode_prompt(
            list(prompts), do_classifier_free_guidance=guided, **self._encoding()
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

    def _limits(self) -> list[tuple[Any, int]]:
        tokenizers = (self.pipeline.tokenizer, self.pipeline.tokenizer_2)
        return [(t, t.model_max_length) for t in tokenizers]

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
        if vae.dtype == torch.float16 and vae.config.force_upcast:
            vae.to(torch.float32)  # as the pipeline does: it overflows in fp16
        return super().decode(latents)

    def _unscaled(self, latents: Tensor) -> Tensor:
        config = self.pipeline.vae.config
        mean, deviation = config.get("latents_mean"), config.get("latents_std")
        if mean is None or deviation is None:
            return super()._unscaled(latents)
        mean, deviation = (latents.new_tensor(x).view(1, -1, 1, 1) for x in (mean, deviation))
        return super()._unscaled(latents * deviation) + mean
