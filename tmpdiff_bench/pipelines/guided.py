"""What every family's loop shares: guidance, the calls of the network that make up a step, and the
order in which a pipeline's parts are needed.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.pipelines.base import SamplerState
from tmpdiff_bench.pipelines.quantized import quantized_layers
from tmpdiff_bench.pipelines.solver import Solver

Predict = Callable[[Tensor, Tensor], Tensor]
_DECODED_TOGETHER = 256  # pixels a side; larger images are decoded one by one, to save memory


@dataclass(frozen=True)
class GuidedLoop:
    """A solver and classifier-free guidance (Ho & Salimans 2022); a scale up to 1 is none."""

    solver: Solver
    scale: float

    @property
    def passes(self) -> int:
        """Rows that the network gets for one sample."""
        return 2 if self.scale > 1 else 1

    def nfe(self, step: int) -> int:
        """Network evaluations of one sample's step."""
        return self.passes * len(self.solver.iterations(step))

    def step(self, state: SamplerState, step: int, predict: Predict) -> SamplerState:
        """One step. `predict(latents, timesteps)` is the network: without the prompt for the
        first half of its rows (`passes` * b in all), where there is guidance.
        """
        for iteration in self.solver.iterations(step):
            inputs = torch.cat([self.solver.model_input(state, iteration)] * self.passes)
            prediction = predict(inputs, self.solver.timestep(iteration).expand(len(inputs)))
            if self.scale > 1:
                unguided, guided = prediction.chunk(2)
                prediction = unguided + self.scale * (guided - unguided)
            state = self.solver.advance(state, iteration, prediction)
        return state


class GuidedPipeline:
    """What the adapters of all families do alike; each adds `encode`, `step`, and its tokenizers.

    `device`: where the loop runs, by default where the pipeline is. `scale`: of the guidance by
    two passes, by default `guidance`. `rest`: loads the network and the VAE by name, where the
    pipeline has only their shapes yet (`load_model(staged=True)`).
    """

    denoiser_name = "transformer"

    def __init__(
        self,
        pipeline: Any,
        latent_shape: tuple[int, int, int],
        *,
        steps: int,
        guidance: float,
        scale: float | None = None,
        device: torch.device | None = None,
        rest: Callable[[], Mapping[str, nn.Module]] | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.denoiser: nn.Module = getattr(pipeline, self.denoiser_name)
        self.steps, self.guidance = steps, guidance
        self.latent_shape = latent_shape
        self.device: torch.device = pipeline.device if device is None else device
        self._dtype: torch.dtype = getattr(pipeline, self.denoiser_name).dtype
        self._rest, self._encoders_freed = rest, False
        # anew, so that setting its timesteps leaves the pipeline alone
        scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
        self._set_timesteps(scheduler)
        self._loop = GuidedLoop(Solver(scheduler), guidance if scale is None else scale)

    def _set_timesteps(self, scheduler: Any) -> None:
        scheduler.set_timesteps(self.steps, device=self.device)

    @property
    def resolution(self) -> tuple[int, int]:
        size = self.latent_shape[1] * self.pipeline.vae_scale_factor
        return size, size

    def nfe(self, step: int) -> int:
        return self._loop.nfe(step)

    @property
    def quantized(self) -> tuple[str, ...]:
        return quantized_layers(self.denoiser)

    def free_text_encoders(self) -> None:
        """Drop the text encoders, then bring in what was left out until here."""
        names = [name for name in self.pipeline.components if name.startswith("text_encoder")]
        self.pipeline.register_modules(**dict.fromkeys(names))
        self._encoders_freed = True
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if self._rest is not None:
            for name, module in self._rest().items():
                setattr(self.pipeline, name, module)
            self._rest = None
        self.denoiser = getattr(self.pipeline, self.denoiser_name)

    def _encoding(self) -> dict[str, Any]:
        """Arguments of the pipeline's `encode_prompt`. Raises `UsageError` without encoders."""
        if self._encoders_freed:
            raise UsageError("the text encoders have been freed: load the model again to encode")
        return {"device": self.device}

    def _limits(self) -> list[tuple[Any, int]]:
        """Each tokenizer with the most tokens that the pipeline takes of it."""
        raise NotImplementedError

    def truncated(self, prompts: Sequence[str]) -> list[str]:
        """The prompts that a tokenizer cuts."""
        limits = self._limits()
        return [p for p in prompts if any(len(t(p).input_ids) > limit for t, limit in limits)]

    def initial_state(self, noise: Tensor) -> SamplerState:
        return self._loop.solver.initial_state(noise.to(device=self.device, dtype=self._dtype))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        vae = self.pipeline.vae
        together = len(latents) if max(self.resolution) <= _DECODED_TOGETHER else 1
        images = [
            vae.decode(self._unscaled(part.to(vae.dtype)), return_dict=False)[0]
            for part in latents.split(together)
        ]
        return (torch.cat(images) / 2 + 0.5).clamp(0, 1).float()

    def _unscaled(self, latents: Tensor) -> Tensor:
        """Latents as the VAE takes them."""
        unscaled: Tensor = latents / self.pipeline.vae.config.scaling_factor
        return unscaled
