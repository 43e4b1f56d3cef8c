"""PixArt-Sigma (`PixArtSigmaPipeline`): a transformer with cross-attention to T5, DPM-Solver++."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import PixArtSigmaPipeline
from torch import Tensor, nn

from tmpdiff_bench.pipelines.base import Conditioning, SamplerState
from tmpdiff_bench.pipelines.guided import GuidedPipeline

_DEFAULT_T5_LENGTH = 300  # of `PixArtSigmaPipeline.__call__`


class PixArtStepwise(GuidedPipeline):
    """A `PixArtSigmaPipeline` as a `StepwisePipeline`, at its native resolution.

    Prompts are lower-cased, as the pipeline does, but not cleaned of web addresses and the like
    (`clean_caption=False`); the resolution is not binned. `t5_length` is the pipeline's
    `max_sequence_length`, `more` as in `GuidedPipeline`.
    """

    def __init__(
        self, pipeline: PixArtSigmaPipeline, *, t5_length: int | None = None, **more: Any
    ) -> None:
        self.t5_length = t5_length or min(_DEFAULT_T5_LENGTH, pipeline.tokenizer.model_max_length)
        config = pipeline.transformer.config
        self._sigma_learned = config.out_channels // 2 == config.in_channels
        shape = (config.in_channels, config.sample_size, config.sample_size)
        super().__init__(pipeline, shape, **more)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        guided = self.guidance > 1
        context, mask, no_context, no_mask = self.pipeline.encode_prompt(
            list(prompts),
            do_classifier_free_guidance=guided,
            clean_caption=False,
            max_sequence_length=self.t5_length,
            **self._encoding(),
        )
        positive = {"encoder_hidden_states": context, "encoder_attention_mask": mask}
        negative = {"encoder_hidden_states": no_context, "encoder_attention_mask": no_mask}
        return Conditioning(positive, negative if guided else {})

    def _limits(self) -> list[tuple[Any, int]]:
        return [(self.pipeline.tokenizer, self.t5_length)]

    def truncated(self, prompts: Sequence[str]) -> list[str]:
        """The prompts that the tokenizer cuts, in lower case."""
        lowered = self.pipeline._text_preprocessing(list(prompts))
        cut = set(super().truncated(lowered))
        return [p for p, text in zip(prompts, lowered, strict=True) if text in cut]

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
