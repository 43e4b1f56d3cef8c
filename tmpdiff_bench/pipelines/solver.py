"""Diffusers schedulers as pure functions: their memory is carried in the state.

A scheduler changes itself in `step`. Here it is copied before each call, given the memory of the
state, and asked afterwards which of its attributes differ from those it had after `set_timesteps`:
these are its memory. No list of attributes per solver is needed.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.pipelines.base import SamplerState


class Solver:
    """A scheduler with its timesteps set.

    Raises:
        UsageError: the scheduler is stochastic, or calls the network more than twice a step.
    """

    def __init__(self, scheduler: Any) -> None:
        name = type(scheduler).__name__
        if getattr(scheduler.config, "stochastic_sampling", False):
            raise UsageError(f"{name} with stochastic_sampling=True is not deterministic")
        if scheduler.order not in (1, 2):
            raise UsageError(
                f"{name} calls the network {scheduler.order} times a step: at most 2 are supported"
            )
        self._fresh = copy.copy(scheduler)
        self._fresh._begin_index = 0
        self._scales = hasattr(scheduler, "scale_model_input")
        if hasattr(scheduler, "is_scale_input_called"):
            self._fresh.is_scale_input_called = True  # `model_input` is, on another copy

    def __len__(self) -> int:
        order: int = self._fresh.order
        return (len(self._fresh.timesteps) + order - 1) // order

    def iterations(self, step: int) -> range:
        """The calls of the network that make up a step, as indices of the scheduler's timesteps.

        Solvers of second order correct each step by a second call, the last one excepted.
        """
        order, total = self._fresh.order, len(self._fresh.timesteps)
        return range(order * step, min(order * (step + 1), total))

    def timestep(self, iteration: int) -> Tensor:
        """The timestep that the network sees, a scalar tensor."""
        value: Tensor = self._fresh.timesteps[iteration]
        return value

    def initial_state(self, noise: Tensor) -> SamplerState:
        """The state before step 0."""
        return SamplerState(noise * getattr(self._fresh, "init_noise_sigma", 1.0), {})

    def model_input(self, state: SamplerState, iteration: int) -> Tensor:
        """What the network sees of the latents: some schedulers scale them."""
        if not self._scales:
            return state.latents
        scheduler = self._with(state, iteration)
        scaled: Tensor = scheduler.scale_model_input(state.latents, self.timestep(iteration))
        return scaled

    def _with(self, state: SamplerState, iteration: int) -> Any:
        """A copy of the scheduler as it is before an iteration."""
        scheduler = copy.copy(self._fresh)
        # lists are changed in place by multistep solvers: each call works on its own
        for name, value in {**vars(self._fresh), **state.memory}.items():
            setattr(scheduler, name, list(value) if isinstance(value, list) else value)
        scheduler._step_index = iteration
        return scheduler

    def advance(self, state: SamplerState, iteration: int, prediction: Tensor) -> SamplerState:
        """The state after an iteration, given the network's (guided) prediction.

        Raises:
            UsageError: the scheduler drew random numbers.
        """
        scheduler, timestep = self._with(state, iteration), self.timestep(iteration)
        before_drawing = torch.get_rng_state()
        latents = scheduler.step(prediction, timestep, state.latents, return_dict=False)[0]
        if not torch.equal(torch.get_rng_state(), before_drawing):
            raise UsageError(
                f"{type(scheduler).__name__} draws random numbers with these settings: only "
                "deterministic schedulers are supported"
            )
        before = vars(self._fresh)
        memory = {
            name: value
            for name, value in vars(scheduler).items()
            if name != "_step_index" and not _same(value, before.get(name))
        }
        return SamplerState(latents.to(state.latents.dtype), memory)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return a is b or bool(a == b)
