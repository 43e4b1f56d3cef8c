"""Prefix-tree evaluation: plans that agree on their first k steps share the first k states.

For S steps and L levels, all S (L-1) single plans and the reference cost S + (L-1) S (S+1) / 2
network steps a sample, where one loop per plan costs S (1 + S (L-1)).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.levels import LevelBank
from tmpdiff_bench.pipelines import Conditioning, SamplerState, StepwisePipeline
from tmpdiff_bench.plan import PrecisionPlan

# changes the latents (n, c, h, w) that a node of the tree starts from: (latents, step, level)
Perturbation = Callable[[Tensor, int, str], Tensor]


class NonFiniteLatentsError(ArithmeticError):
    """A step produced NaN or infinite latents; names the step and the level."""


@dataclass(frozen=True)
class PrefixTree:
    """The distinct prefixes of some plans.

    `nodes[s]` lists the nodes after step s as (parent's index in `nodes[s-1]`, level); `leaves` is
    the index in the last list of each plan.
    """

    nodes: tuple[tuple[tuple[int, str], ...], ...]
    leaves: tuple[int, ...]

    @classmethod
    def of(cls, plans: Sequence[PrecisionPlan]) -> PrefixTree:
        """The tree of plans of equal length. Raises `UsageError` for none or unequal ones."""
        if not plans:
            raise UsageError("no plans to evaluate")
        steps = len(plans[0])
        if odd := next((p for p in plans if len(p) != steps), None):
            raise UsageError(f"plan {odd} has {len(odd)} steps, others have {steps}")
        at = [0] * len(plans)
        depths = []
        for step in range(steps):
            index: dict[tuple[int, str], int] = {}
            at = [
                index.setdefault((node, plan[step]), len(index))
                for node, plan in zip(at, plans, strict=True)
            ]
            depths.append(tuple(index))
        return cls(tuple(depths), tuple(at))

    def __len__(self) -> int:
        """Number of nodes: network steps per sample."""
        return sum(map(len, self.nodes))


@torch.no_grad()
def evaluate(
    pipeline: StepwisePipeline,
    bank: LevelBank,
    conditioning: Conditioning,
    noise: Tensor,
    plans: Sequence[PrecisionPlan],
    *,
    max_batch: int = 32,
    perturb: Perturbation | None = None,
    on_nfe: Callable[[int], None] | None = None,
) -> Tensor:
    """Final latents (P, n, c, h, w), float32 on the CPU, of P plans for n samples.

    `conditioning` and `noise` have n rows. Every node of the plans' prefix tree is computed once;
    up to `max_batch` states that need the same step and level run as one batch. `on_nfe` is told
    how many network evaluations have just been spent.

    Raises:
        NonFiniteLatentsError: a step produced NaN or infinity.
        UsageError: plans of unequal length, or not of `pipeline.steps` steps.
    """
    tree = PrefixTree.of(plans)
    if len(tree.nodes) != pipeline.steps:
        raise UsageError(f"plans have {len(tree.nodes)} steps, the pipeline has {pipeline.steps}")
    samples = len(noise)
    frontier: list[SamplerState] = [pipeline.initial_state(noise)]
    for step, nodes in enumerate(tree.nodes):
        children: list[SamplerState | None] = [None] * len(nodes)
        for level in dict.fromkeys(level for _, level in nodes):
            mine = [i for i, (_, other) in enumerate(nodes) if other == level]
            inputs = [frontier[nodes[i][0]] for i in mine]
            if perturb is not None:
                inputs = [SamplerState(perturb(s.latents, step, level), s.memory) for s in inputs]
            # nodes times samples as one list of rows, cut into batches
            rows = torch.arange(len(mine) * samples)
            outputs = []
            for batch in rows.split(max_batch):
                first, last = int(batch[0]) // samples, int(batch[-1]) // samples
                states = SamplerState.cat(inputs[first : last + 1])[batch - first * samples]
                outputs.append(
                    pipeline.step(states, step, bank[level], conditioning[batch % samples])
                )
                _check_finite(outputs[-1].latents, step, level)
                if on_nfe is not None:
                    on_nfe(len(batch) * pipeline.nfe_per_step)
            merged = SamplerState.cat(outputs)
            for k, i in enumerate(mine):
                children[i] = merged[k * samples : (k + 1) * samples]
        frontier = [state for state in children if state is not None]
    finals = torch.stack([state.latents.float().cpu() for state in frontier])
    return finals[list(tree.leaves)]


def _check_finite(latents: Tensor, step: int, level: str) -> None:
    if not torch.isfinite(latents).all():
        raise NonFiniteLatentsError(f"step {step} at level {level} produced non-finite latents")
