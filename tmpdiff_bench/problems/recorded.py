"""A problem of a recording: no model is needed, and nothing is run."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tmpdiff_bench.allocators import AllocationProblem
from tmpdiff_bench.errors import UsageError, check_known
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.problems.costs import CostTable, costs_of_run, mean_products, with_reference
from tmpdiff_bench.trajectory.recording import Recording

_POWERS = {"latent_rmse": 0.5, "latent_mse": 1.0}  # of s'Gs


class RecordedError:
    """Errors of plans that a recording holds (means over its samples), and predictions of others.

    A plan that was not run is given the root of s'Gs (for `latent_mse` s'Gs itself): what its error
    would be if terminal deviations superposed. `source(plan)` tells the two apart.
    """

    def __init__(
        self, recording: Recording, metric: str, samples: Sequence[int] | None = None
    ) -> None:
        names = sorted(set(recording.table["metric"]))
        check_known("metric of the recording", metric, names)
        chosen = list(range(len(recording.samples)) if samples is None else samples)
        rows = recording.table[recording.table["metric"] == metric]
        if samples is not None:
            keys = pd.MultiIndex.from_frame(rows[["prompt_id", "seed"]])
            rows = rows[keys.isin([recording.samples[i] for i in chosen])]
        means = rows.groupby("plan")["value"].mean()
        self._metric, self._levels, self._steps = metric, recording.levels, recording.steps
        self._means = {str(plan): float(value) for plan, value in means.items()}
        self._means[str(PrecisionPlan.uniform(recording.levels[0], recording.steps))] = 0.0
        self._products: NDArray[np.float64] | None = None
        if metric in _POWERS:
            singles = recording.singles.reshape(-1, *recording.reference.shape)[:, chosen]
            self._products = mean_products(singles.reshape(len(singles), -1))

    @property
    def gram(self) -> NDArray[np.float64] | None:
        """Mean inner products of deviations, for `latent_rmse`: the root of s'Gs is an RMSE, and
        must not be compared with errors in other units.
        """
        return self._products if self._metric == "latent_rmse" else None

    def __call__(self, plan: PrecisionPlan) -> float:
        """Look a plan up, or predict it.

        Raises `UsageError` where it was not recorded and the metric has no inner products, and for
        plans of another length or with levels that the recording does not have.
        """
        if self.source(plan) == "measured":
            return self._means[str(plan)]
        if len(plan) != self._steps:
            raise UsageError(f"plan {plan} has {len(plan)} steps, the recording {self._steps}")
        for level in plan:
            check_known("level of the recording", level, self._levels)
        if self._products is None:
            raise UsageError(
                f"the recording holds no {self._metric} of plan {plan}, and only latent metrics "
                "are predicted: use latent_rmse, or a live_problem"
            )
        cells = plan.cells(self._levels)
        square = max(float(self._products[np.ix_(cells, cells)].sum()), 0.0)
        return math.pow(square, _POWERS[self._metric])

    def source(self, plan: PrecisionPlan) -> str:
        """Either "measured" or "predicted"."""
        return "measured" if str(plan) in self._means else "predicted"


def from_recording(
    recording: Recording,
    cost_table: CostTable,
    *,
    speedup: float,
    metric: str = "latent_rmse",
    samples: Sequence[int] | None = None,
) -> AllocationProblem:
    """The problem of a recording's levels, steps and samples (all, or those at these indices).

    Single errors and the Gram matrix (for `latent_rmse`) are the recording's. Its joint plans have
    measured errors; the error of every other plan is *predicted* from the Gram matrix, and
    `Allocation.error_source` says so. An allocator that searches by such errors searches the
    prediction: `gram` finds its optimum directly. To score plans, measure them (`live_problem`).

    Raises:
        UsageError: an unknown metric, a level without a cost, an impossible speedup.
    """
    error = RecordedError(recording, metric, samples)
    levels, steps = recording.levels, recording.steps
    plans = PrecisionPlan.singles(levels, steps)
    for plan in plans:
        if error.source(plan) != "measured":
            raise UsageError(f"the recording's table has no {metric} of the single plan {plan}")
    singles = with_reference([error(plan) for plan in plans], steps)
    nfe_per_step = recording.manifest["nfe"]["per_step"]
    return AllocationProblem.for_speedup(
        speedup,
        levels=levels,
        step_costs=costs_of_run(cost_table, levels, nfe_per_step),
        error=error,
        single_errors=singles,
        gram=error.gram,
        nfe_per_step=nfe_per_step,
    )
