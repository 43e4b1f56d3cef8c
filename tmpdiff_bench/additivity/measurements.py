"""A recording as the arrays that the analysis works on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tmpdiff_bench.additivity.hypotheses import inner_products
from tmpdiff_bench.additivity.predictors import SingleErrors
from tmpdiff_bench.additivity.records import Floats
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.report.style import MIXED

if TYPE_CHECKING:
    from tmpdiff_bench.trajectory.recording import Recording

FLOOR_MULTIPLE = 10  # single errors below this multiple of the numerical floor are flagged
_SQUARED = {"latent_rmse": False, "latent_mse": True}  # metrics that the inner products give
_TOLERANCE = 1e-3  # the table may have been computed in float32


@dataclass(frozen=True, eq=False)
class Group:
    """The plans of one low level, or the "mixed" ones, and the cells that they may use."""

    level: str
    plans: NDArray[np.int64]
    cells: slice
    floor_ratio: float


@dataclass(frozen=True, eq=False)
class Measurements:
    """P plans, n samples, K = (L-1) * S cells ordered by level, then step.

    `membership` (P, K); `products` (n, K, K) inner products of deviations per latent element;
    `singles` and `joint` by metric, (K, n) and (P, n); `floor_ratio` (L-1, S) mean latent RMSE of
    a single run over the mean numerical floor.
    """

    recording: Recording
    prompt_ids: tuple[str, ...]
    membership: Floats
    products: Floats
    singles: dict[str, Floats]
    joint: dict[str, Floats]
    floor_ratio: Floats

    @classmethod
    def of(cls, recording: Recording, metrics: Sequence[str]) -> Measurements:
        """Gather the arrays. Raises `UsageError` where the table is incomplete or contradicts."""
        low, steps, plans = recording.levels[1:], recording.steps, recording.plans
        cells = [(level, step) for level in low for step in range(steps)]
        runs = [*PrecisionPlan.singles(recording.levels, steps), *plans]
        singles, joint = {}, {}
        for metric in metrics:
            values = _values(recording, metric, runs)
            singles[metric], joint[metric] = values[: len(cells)], values[len(cells) :]
        products = inner_products(
            recording.singles.reshape(len(cells), *recording.singles.shape[2:])
        )
        squares = np.diagonal(products, axis1=1, axis2=2).T
        joined = np.square(recording.joint, dtype=np.float64).mean(axis=-1)
        for metric in set(metrics) & set(_SQUARED):
            for values, stored in ((singles[metric], squares), (joint[metric], joined)):
                expected = stored if _SQUARED[metric] else np.sqrt(stored)
                if not np.allclose(values, expected, rtol=_TOLERANCE, atol=0):
                    raise UsageError(f"the table's {metric} is not that of the stored latents")
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.sqrt(squares).mean(axis=1) / np.float64(recording.floor.mean())
        return cls(
            recording=recording,
            prompt_ids=tuple(prompt for prompt, _ in recording.samples),
            membership=np.array(
                [[plan[s] == level for level, s in cells] for plan in plans], float
            ),
            products=products,
            singles=singles,
            joint=joint,
            floor_ratio=ratio.reshape(len(low), steps),
        )

    @property
    def low_steps(self) -> NDArray[np.int64]:
        """Count the low steps of each plan, (P,)."""
        return np.asarray(self.membership.sum(axis=1), dtype=np.int64)

    @property
    def flagged(self) -> NDArray[np.bool_]:
        """Say which single errors (L-1, S) are too near the numerical floor, or both zero."""
        return np.asarray(~(self.floor_ratio >= FLOOR_MULTIPLE), dtype=np.bool_)

    def cells(self, index: int) -> slice:
        """Locate the cells of low level number `index`."""
        return slice(index * self.recording.steps, (index + 1) * self.recording.steps)

    def groups(self) -> list[Group]:
        """List the levels that have plans of their own, then the mixed plans."""
        steps = self.recording.steps
        counts = self.membership.reshape(len(self.membership), -1, steps).sum(axis=2)
        alone = np.count_nonzero(counts, axis=1) == 1
        groups = [
            Group(
                level,
                np.flatnonzero(alone & (counts[:, i] > 0)),
                self.cells(i),
                float(self.floor_ratio[i].min()),
            )
            for i, level in enumerate(self.recording.levels[1:])
        ]
        mixed = Group(MIXED, np.flatnonzero(~alone), slice(None), float(self.floor_ratio.min()))
        return [group for group in (*groups, mixed) if len(group.plans)]

    def single_errors(self, metric: str, cells: slice) -> SingleErrors:
        """Give what predictors may use of some cells."""
        return SingleErrors(
            metric,
            self.singles[metric][cells],
            self.products[:, cells, cells] if metric in _SQUARED else None,
            _SQUARED.get(metric, False),
        )


def _values(recording: Recording, metric: str, runs: Sequence[PrecisionPlan]) -> Floats:
    """Look up a metric of `runs`, (len(runs), n)."""
    rows = recording.table[recording.table["metric"] == metric]
    keys = ["plan", "prompt_id", "seed"]
    if rows.duplicated(keys).any():
        raise UsageError(f"the table has two values of {metric} for one plan, prompt and seed")
    found = rows.set_index(keys)["value"]
    wanted = pd.MultiIndex.from_tuples(
        [(str(run), *sample) for run in runs for sample in recording.samples], names=keys
    )
    values: Floats = found.reindex(wanted).to_numpy(dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        plan, prompt, seed = wanted[bad[0]]
        raise UsageError(
            f"the table has no finite {metric} in {len(bad)} of {len(values)} places, "
            f"the first for plan {plan!r}, prompt {prompt!r}, seed {seed}"
        )
    return values.reshape(len(runs), -1)
