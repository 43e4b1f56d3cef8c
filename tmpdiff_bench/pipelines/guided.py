"""What every family's loop shares: guidance, and the calls of the network that make up a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tmpdiff_bench.pipelines.base import SamplerState
from tmpdiff_bench.pipelines.solver import Solver

Predict = Callable[[Tensor, Tensor], Tensor]


def scheduler_copy(pipeline: Any) -> Any:
    """The pipeline's scheduler anew, so that setting its timesteps leaves the pipeline alone."""
    return type(pipeline.scheduler).from_config(pipeline.scheduler.config)


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


def too_long(prompts: list[str], limits: list[tuple[Any, int]]) -> list[str]:
    """The prompts that one of the (tokenizer, most tokens) cuts."""
    return [p for p in prompts if any(len(t(p).input_ids) > limit for t, limit in limits)]
