"""What is timed: a model's denoising loop, or a true-size denoiser with random weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol

import torch
from torch import Tensor

from tmpdiff_bench.costs.architectures import Architecture, architecture
from tmpdiff_bench.costs.isolation import RANDOM, Subject
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.levels import LevelBank
from tmpdiff_bench.noise import generator_seed
from tmpdiff_bench.pipelines import check_device, denoisers, load_pipeline, quantized_layers
from tmpdiff_bench.pipelines.calls import Call, check_call, read_argument, refusing
from tmpdiff_bench.pipelines.loop import Director, Run, directed
from tmpdiff_bench.pipelines.own import OwnModules, check_sources
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.trajectory.engine import level_banks
from tmpdiff_bench.zoo.prompts import mixed_prompts


class Runner(Protocol):
    """Runs whole plans; `title` says of what."""

    title: str

    def seconds(self, plan: PrecisionPlan) -> float:
        """Wall time of a plan's steps, without encoding and decoding."""
        ...


def runner(subject: Subject) -> Runner:
    """The subject in memory. Raises `UsageError` where it can't be loaded."""
    if subject.weights == RANDOM:
        return TrueSize(architecture(subject.model), subject)
    return Loop(subject)


class Loop:
    """A pipeline's own loop, from the same noise each time."""

    def __init__(self, subject: Subject) -> None:
        check_sources(subject.modules)
        loaded = load_pipeline(
            subject.model,
            weights=subject.weights,
            revision=subject.revision,
            device=subject.device,
        )
        pipe = loaded.pipeline
        check_call(pipe, subject.call)
        own = {name: read_argument(pipe, name, value) for name, value in subject.call.items()}
        self.title, self._pipe, self._wait = loaded.title, pipe, waiting(subject.device)
        places = tuple(denoisers(pipe))
        self._banks = level_banks(pipe, subject.levels, modules=OwnModules(subject.modules, places))
        if subject.compiled:
            for place, denoiser in denoisers(pipe).items():
                setattr(pipe, place, torch.compile(denoiser))
        texts = list(mixed_prompts(subject.batch, "calibration")["text"])
        seeds = [generator_seed(text, 0) for text in texts]
        self._call = Call({**loaded.defaults, **own}, {"prompt": texts}, seeds)

    def seconds(self, plan: PrecisionPlan) -> float:
        """From the first call of the denoiser to the end of the last step."""
        timed = _Timed(self._banks, plan, self._wait)
        arguments = self._call.arguments()
        pipe, watched = self._pipe, directed(self._pipe, timed)
        with torch.no_grad(), suppress(_DoneError), refusing(pipe, timed.started), watched:
            pipe(**arguments, num_inference_steps=len(plan))
        return timed.ended - timed.began


class _DoneError(Exception):
    """Ends a call after its last step."""


class _Timed(Director):
    """Directs one run along a plan, and ends it after the last step."""

    def __init__(
        self, banks: Mapping[str, LevelBank], plan: PrecisionPlan, wait: Callable[[], None]
    ) -> None:
        self._banks, self._plan, self._wait = banks, plan, wait
        self.began = self.ended = 0.0

    def started(self) -> bool:
        """Whether the run has come to its loop."""
        return self.began > 0

    def denoise(self, place: str, step: int, run: Run, args: Any, kwargs: Any) -> Any:
        if not self.began:
            self._wait()
            self.began = time.perf_counter()
        return self._banks[place].run(self._plan[step], run, *args, **kwargs)

    def advance(self, step: int, last: bool, run: Run, args: Any, kwargs: Any) -> Any:
        result = run(*args, **kwargs)
        if last and step == len(self._plan) - 1:
            self._wait()
            self.ended = time.perf_counter()
            raise _DoneError
        return result


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
        self._bank = LevelBank(denoiser, subject.levels, quantized_layers(denoiser))
        self._denoiser = torch.compile(denoiser) if subject.compiled else denoiser
        self._wait = waiting(subject.device)

    def seconds(self, plan: PrecisionPlan) -> float:
        """Of all its steps."""
        self._wait()
        began = time.perf_counter()
        self.run(plan)
        self._wait()
        return time.perf_counter() - began

    @torch.no_grad()
    def run(self, plan: PrecisionPlan) -> Tensor:
        """The network's output at the last step."""
        for level in plan:
            output: Tensor
            output, *_ = self._bank.run(level, self._denoiser, **self._inputs, return_dict=False)
        return output


def waiting(device: str) -> Callable[[], None]:
    """Waits for what a device has been given to do; nothing is left on a CPU."""
    return torch.cuda.synchronize if device.startswith("cuda") else lambda: None


def _random(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _random(entry) for name, entry in value.items()}
    return torch.randn_like(value, dtype=torch.bfloat16) if isinstance(value, Tensor) else value
