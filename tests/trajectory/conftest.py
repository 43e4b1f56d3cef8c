"""Toy pipelines with known arithmetic, and a small workload on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tmpdiff_bench.levels import LevelBank
from tmpdiff_bench.pipelines import Conditioning, SamplerState

SHAPE = (2, 4, 4)


class ToyBank(LevelBank):
    """Levels given as functions latents -> velocity; counts the rows that each call got."""

    def __init__(self, levels: dict[str, Callable[[Tensor], Tensor]]) -> None:
        self.functions = {name: Function(f) for name, f in levels.items()}
        self._modules = dict[str, nn.Module](self.functions)


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.batches: list[int] = []

    def forward(self, latents: Tensor) -> Tensor:
        self.batches.append(len(latents))
        return self.function(latents)


@dataclass
class ToyPipeline:
    """Euler steps of size 1/S; the velocity also depends on the prompt (its length)."""

    steps: int
    guidance: float = 1.0
    latent_shape: tuple[int, int, int] = SHAPE
    resolution: tuple[int, int] = (32, 32)
    quantized: tuple[str, ...] = ()
    denoiser: nn.Module = field(default_factory=lambda: nn.Linear(1, 1))

    def nfe(self, step: int) -> int:
        return 1

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        return Conditioning({"length": torch.tensor([[float(len(p))] for p in prompts])}, {})

    def free_text_encoders(self) -> None:
        pass

    def truncated(self, prompts: Sequence[str]) -> list[str]:
        return []

    def initial_state(self, noise: Tensor) -> SamplerState:
        return SamplerState(noise, {})

    def step(
        self, state: SamplerState, step: int, denoiser: nn.Module, conditioning: Conditioning
    ) -> SamplerState:
        shift = 0.01 * conditioning.positive["length"][:, :, None, None]
        velocity = denoiser(state.latents) + shift
        return SamplerState(state.latents + velocity / self.steps, {})

    def decode(self, latents: Tensor) -> Tensor:
        images = latents.repeat_interleave(8, 2).repeat_interleave(8, 3).sigmoid()
        return torch.cat([images, images[:, :1]], dim=1)
