"""A problem whose errors are measured on a pipeline while an allocator asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tmpdiff_bench.allocators import AllocationProblem
from tmpdiff_bench.errors import UsageError, unknown
from tmpdiff_bench.levels import LevelBank
from tmpdiff_bench.metrics.fidelity import LATENT_METRICS
from tmpdiff_bench.noise import initial_noise
from tmpdiff_bench.pipelines import StepwisePipeline
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.problems.costs import CostTable
from tmpdiff_bench.trajectory.engine import STATE_MEMORY, PrefixEngine
from tmpdiff_bench.trajectory.workload import Workload


class LiveError:
    """The mean over a workload's samples of a latent metric between a plan's final latents and
    those of the reference run. States are kept between calls (`PrefixEngine`), so a plan costs
    only what it does not share with those before it; `state_memory` bounds them. `engine` has
    the network evaluations spent.
    """

    def __init__(
        self,
        pipeline: StepwisePipeline,
        workload: Workload,
        levels: Sequence[str],
        *,
        metric: str = "latent_rmse",
        state_memory: int = STATE_MEMORY,
        on_nfe: Callable[[int], None] | None = None,
    ) -> None:
        if metric not in LATENT_METRICS:
            raise unknown("latent metric", metric, LATENT_METRICS)
        for name in ("steps", "guidance", "resolution"):
            here, there = getattr(pipeline, name), getattr(workload, name)
            if here != there:
                raise UsageError(
                    f"the pipeline's {name} is {here}, the workload's is {there}: make both of the "
                    "same settings"
                )
        samples = workload.samples
        texts = [workload.prompts[prompt] for prompt, _ in samples]
        denoiser = pipeline.denoiser
        place = next(denoiser.parameters())
        noise = initial_noise(samples, pipeline.latent_shape).to(place.device, place.dtype)
        self.engine = PrefixEngine(
            pipeline,
            LevelBank(denoiser, tuple(levels), pipeline.quantized),
            pipeline.encode(texts),
            noise,
            max_batch=workload.max_batch,
            state_memory=state_memory,
            on_nfe=on_nfe,
        )
        self._metric = LATENT_METRICS[metric]
        self._plan = PrecisionPlan.uniform(levels[0], pipeline.steps)
        self._reference = self.engine.evaluate([self._plan])[0]

    def __call__(self, plan: PrecisionPlan) -> float:
        """Measure one plan."""
        return float(self.samples([plan])[0].mean())

    def samples(self, plans: Sequence[PrecisionPlan]) -> NDArray[np.float64]:
        """Errors of plans by sample, (P, n), run together."""
        finals = self.engine.evaluate(plans)
        rows = [self._metric(final, self._reference) for final in finals]
        return np.asarray(torch.stack(rows).numpy(), dtype=np.float64)

    def deviations(self, plans: Sequence[PrecisionPlan]) -> Tensor:
        """Final latents minus the reference's, (P, n, c, h, w)."""
        return self.engine.evaluate(plans) - self._reference


def live_problem(
    pipeline: StepwisePipeline,
    workload: Workload,
    cost_table: CostTable,
    *,
    levels: Sequence[str],
    speedup: float,
    metric: str = "latent_rmse",
    record_singles: bool = False,
    state_memory: int = STATE_MEMORY,
    on_nfe: Callable[[int], None] | None = None,
) -> AllocationProblem:
    """The problem of a pipeline on a workload's samples (calibration prompts), `levels[0]` being
    the reference.

    `record_singles` runs all single plans at once now, for `single_errors` and, where the metric is
    `latent_rmse`, `gram`: the root of s'Gs is an RMSE, and compares with nothing else.
    `state_memory` bounds the bytes of states held. `on_nfe` is told the network evaluations just
    spent, for a progress bar.

    Raises:
        UsageError: an unknown level or metric, a level without a cost, an impossible speedup, a
            pipeline of other settings than the workload's.
    """
    error = LiveError(
        pipeline, workload, levels, metric=metric, state_memory=state_memory, on_nfe=on_nfe
    )
    steps = pipeline.steps
    single_errors = gram = None
    if record_singles:
        singles = [
            PrecisionPlan.single(levels[0], level, step, steps)
            for level in levels[1:]
            for step in range(steps)
        ]
        values = error.samples(singles).mean(axis=1).reshape(len(levels) - 1, steps).T
        single_errors = np.column_stack([np.zeros(steps), values])
        if metric == "latent_rmse":
            gram = mean_products(error.deviations(singles).flatten(1).numpy())
    return AllocationProblem.for_speedup(
        speedup,
        levels=levels,
        step_costs=cost_table.step_costs(levels, steps),
        error=error,
        single_errors=single_errors,
        gram=gram,
        nfe_per_step=[pipeline.nfe(step) for step in range(steps)],
    )


def mean_products(deviations: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean products (K, K) of deviations (K, n D) over samples and latent elements."""
    exact = np.asarray(deviations, dtype=np.float64)
    return np.asarray(exact @ exact.T / exact.shape[1])
