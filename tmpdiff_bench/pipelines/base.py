"""The denoising loop as a pure function: states are values, steps never change their input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Rows = Tensor | slice | list[int]


@dataclass(frozen=True)
class SamplerState:
    """`latents` (b, c, h, w), and `memory`: what the solver remembers between steps.

    Memory holds scheduler attributes by name; tensors in it (also inside lists) have b rows.
    """

    latents: Tensor
    memory: dict[str, Any]

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, rows: Rows) -> SamplerState:
        return SamplerState(self.latents[rows], _map_rows(lambda x: x[rows], self.memory))

    @property
    def nbytes(self) -> int:
        """Memory of the tensors, bytes."""
        sizes = [self.latents.nbytes]
        _map_rows(lambda x: sizes.append(x.nbytes), self.memory)
        return sum(sizes)

    @classmethod
    def cat(cls, states: Sequence[SamplerState]) -> SamplerState:
        """States of the same step, one below the other."""
        if len(states) == 1:
            return states[0]
        return cls(torch.cat([s.latents for s in states]), _cat_memory([s.memory for s in states]))


def _map_rows(change: Any, value: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value) if value.ndim else value
    if isinstance(value, dict):
        return {k: _map_rows(change, v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_map_rows(change, v) for v in value)
    return value


def _cat_memory(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(list(values)) if first.ndim else first
    if isinstance(first, dict):
        return {k: _cat_memory([v[k] for v in values]) for k in first}
    if isinstance(first, list | tuple):
        return type(first)(_cat_memory(v) for v in zip(*values, strict=True))
    return first


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts: named tensors, one row a prompt; `negative` is empty without guidance."""

    positive: dict[str, Tensor]
    negative: dict[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.positive.values())))

    def __getitem__(self, rows: Rows) -> Conditioning:
        return Conditioning(
            {k: v[rows] for k, v in self.positive.items()},
            {k: v[rows] for k, v in self.negative.items()},
        )

    def for_network(self) -> dict[str, Tensor]:
        """Rows as the network gets them: negative first, then positive, as diffusers does."""
        if not self.negative:
            return self.positive
        return {k: torch.cat([self.negative[k], v]) for k, v in self.positive.items()}


class StepwisePipeline(Protocol):
    """A diffusers pipeline taken apart; rows of a batch never influence one another.

    Running every step with the pipeline's own denoiser gives what its `__call__` gives.
    """

    denoiser: nn.Module
    steps: int
    guidance: float
    latent_shape: tuple[int, int, int]

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width of the images, pixels."""
        ...

    def nfe(self, step: int) -> int:
        """Network evaluations of one sample's step: doubled by classifier-free guidance, and by
        solvers of second order.
        """
        ...

    @property
    def quantized(self) -> tuple[str, ...]:
        """Names of the denoiser's submodules that precision levels change."""
        ...

    def encode(self, prompts: Sequence[str]) -> Conditioning: ...

    def free_text_encoders(self) -> None:
        """Drop the text encoders for good: all prompts have been encoded. Pipelines that were
        loaded in stages get their network and VAE now.
        """
        ...

    def truncated(self, prompts: Sequence[str]) -> list[str]:
        """The prompts that a tokenizer cuts."""
        ...

    def initial_state(self, noise: Tensor) -> SamplerState: ...

    def step(
        self, state: SamplerState, step: int, denoiser: nn.Module, conditioning: Conditioning
    ) -> SamplerState: ...

    def decode(self, latents: Tensor) -> Tensor:
        """Images (b, 3, H, W) in [0, 1]."""
        ...
