"""A problem whose errors are measured on a pipeline while an allocator asks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tmpdiff_bench.allocators import AllocationProblem
from tmpdiff_bench.errors import check_known
from tmpdiff_bench.metrics.fidelity import LATENT_METRICS
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.problems.costs import CostTable, costs_of_run, mean_products, with_reference
from tmpdiff_bench.trajectory.engine import PrefixEngine


class LiveError:
    """The mean over an engine's samples of a latent metric between a plan's final latents and those
    of the reference run. The engine keeps steps between calls, so a plan costs only what it does
    not share with those before it. `levels[0]` is the reference; `engine` has the network
    evaluations spent.

    Raises:
        UsageError: an unknown metric.
    """

    def __init__(self, engine: PrefixEngine, *, metric: str = "latent_rmse") -> None:
        check_known("latent metric", metric, LATENT_METRICS)
        self.engine, self._metric = engine, LATENT_METRICS[metric]
        self.levels = next(iter(engine.banks.values())).levels
        self.steps = int(engine.call.shared["num_inference_steps"])
        plan = PrecisionPlan.uniform(self.levels[0], self.steps)
        self._reference = engine.evaluate([plan])[0]

    def __call__(self, plan: PrecisionPlan) -> float:
        """Measure one plan."""
        return float(self.samples([plan])[0].mean())

    def samples(self, plans: Sequence[PrecisionPlan]) -> NDArray[np.float64]:
        """Errors of plans by sample, (P, n), run together."""
        finals = self.engine.evaluate(plans)
        rows = [self._metric(final, self._reference) for final in finals]
        return np.asarray(torch.stack(rows).numpy(), dtype=np.float64)

    def deviations(self, plans: Sequence[PrecisionPlan]) -> Tensor:
        """Final latents minus the reference's, (P, n, ...)."""
        return self.engine.evaluate(plans) - self._reference


def live_problem(
    engine: PrefixEngine,
    cost_table: CostTable,
    *,
    speedup: float,
    metric: str = "latent_rmse",
    record_singles: bool = False,
) -> AllocationProblem:
    """The problem of an engine's levels, the first being the reference, on its samples (of
    calibration prompts).

    `record_singles` runs all single plans at once now, for `single_errors` and, where the metric is
    `latent_rmse`, `gram`: the root of s'Gs is an RMSE, and compares with nothing else.

    Raises:
        UsageError: an unknown metric, a level without a cost, an impossible speedup.
    """
    error = LiveError(engine, metric=metric)
    levels, steps = error.levels, error.steps
    single_errors = gram = None
    if record_singles:
        singles = PrecisionPlan.singles(levels, steps)
        single_errors = with_reference(error.samples(singles).mean(axis=1), steps)
        if metric == "latent_rmse":
            gram = mean_products(error.deviations(singles).flatten(1).numpy())
    return AllocationProblem.for_speedup(
        speedup,
        levels=levels,
        step_costs=costs_of_run(cost_table, levels, engine.nfe_per_step),
        error=error,
        single_errors=single_errors,
        gram=gram,
        nfe_per_step=engine.nfe_per_step,
    )
