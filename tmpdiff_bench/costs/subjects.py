"""What is timed: a model's denoising loop, or a true-size denoiser with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tmpdiff_bench.costs.architectures import Architecture, architecture
from tmpdiff_bench.costs.worker import RANDOM, Subject
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.levels import LevelBank
from tmpdiff_bench.noise import initial_noise
from tmpdiff_bench.pipelines import SamplerState, check_device, load_model, quantized_layers
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.zoo.prompts import mixed_prompts


class Runner(Protocol):
    """Runs whole plans; `title` says of what."""

    title: str

    def run(self, plan: PrecisionPlan) -> Tensor:
        """The latents after a plan's steps, or the last output of the network."""
        ...


def runner(subject: Subject) -> Runner:
    """The subject in memory. Raises `UsageError` where it can't be loaded."""
    if subject.weights == RANDOM:
        return TrueSize(architecture(subject.model), subject)
    return Loop(subject)


class Loop:
    """The real denoising loop of a pipeline, from the same noise each time."""

    def __init__(self, subject: Subject) -> None:
        loaded = load_model(
            subject.model,
            weights=subject.weights,
            revision=subject.revision,
            device=subject.device,
        )
        self.title = loaded.title
        self._pipeline = loaded.stepwise(steps=subject.steps, guidance=subject.guidance)
        denoiser = self._pipeline.denoiser
        self._level = _levels(subject, denoiser, self._pipeline.quantized)
        texts = list(mixed_prompts(subject.batch, "calibration")["text"])
        self._conditioning = self._pipeline.encode(texts)
        noise = initial_noise([(text, 0) for text in texts], self._pipeline.latent_shape)
        self._state: SamplerState = self._pipeline.initial_state(noise)

    def run(self, plan: PrecisionPlan) -> Tensor:
        """The final latents."""
        state = self._state
        for step, level in enumerate(plan):
            state = self._pipeline.step(state, step, self._level(level), self._conditioning)
        return state.latents


class TrueSize:
    """A denoiser of true size in bf16, called once a step on the same random inputs.

    Its time does not depend on the values of weights. Sampler, encoders and VAE are left out.

    Raises:
        UsageError: the level fp32, which a network in bf16 lacks, a size it does not take, or an
            absent device.
    """

    def __init__(self, shape: Architecture, subject: Subject) -> None:
        if "fp32" in subject.levels:
            raise UsageError("denoisers of true size are in bf16: their reference is native:bf16")
        side, device = subject.resolution, check_device(subject.device)
        self.title = f"{shape.title} at {side}x{side}"
        inputs = shape.call(side, side, subject.device, batch=subject.batch)
        self._inputs = {name: _random(value) for name, value in inputs.items()}
        denoiser = shape.build().to(torch.bfloat16).to_empty(device=device)
        for tensor in (*denoiser.parameters(), *denoiser.buffers()):
            torch.nn.init.normal_(tensor, std=0.02)
        self._level = _levels(subject, denoiser, quantized_layers(denoiser))

    @torch.no_grad()
    def run(self, plan: PrecisionPlan) -> Tensor:
        """The network's output at the last step."""
        for level in plan:
            output: Tensor = self._level(level)(**self._inputs, return_dict=False)[0]
        return output


def _levels(
    subject: Subject, denoiser: nn.Module, quantized: tuple[str, ...]
) -> Callable[[str], Any]:
    """Looks up the denoiser at a level, compiled where the subject says so."""
    bank = LevelBank(denoiser, subject.levels, quantized)
    if not subject.compiled:
        return bank.__getitem__
    return {level: torch.compile(bank[level]) for level in subject.levels}.__getitem__


def _random(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _random(entry) for name, entry in value.items()}
    return torch.randn_like(value, dtype=torch.bfloat16) if isinstance(value, Tensor) else value
