"""What the runs of a level say without any predictor: superposition, contexts, sensitivities."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tmpdiff_bench.additivity import hypotheses
from tmpdiff_bench.additivity.hypotheses import (
    Overlap,
    PromptBootstrap,
    inner_products,
    mean_of,
    means_of,
)
from tmpdiff_bench.additivity.measurements import Group, Measurements
from tmpdiff_bench.additivity.records import (
    DesignFreeCheck,
    Fidelity,
    Floats,
    GramMatrix,
    Sensitivity,
    Superposition,
)
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.statistics import Interval

if TYPE_CHECKING:
    from tmpdiff_bench.trajectory.recording import Recording


HYPOTHESES_RULE = (
    "The hypotheses and the design-free check are decided by bootstrap intervals over prompts, "
    "without adjustment: supported when the {inner:g} % interval lies within the margin, refuted "
    "when the {outer:g} % interval lies outside. H1: mean relative residual at most {margin:g}. "
    "H1m and H2: root of the ratio of mean squares between 1/(1+{margin:g}) and 1+{margin:g}. "
    "Design-free: the ratio between the same."
)


@dataclass(frozen=True, eq=False)
class Findings:
    """The recording, its resampled prompts, and the margin that verdicts use."""

    data: Measurements
    bootstrap: PromptBootstrap
    margin: float

    def superposition(self, group: Group) -> Superposition | None:
        """Test H1, H1m and H2 on all joint plans of a level; None where every error is zero.

        Plans of which an error is exactly zero for some sample are left out of H1 and H1m.
        """
        recording, bootstrap = self.data.recording, self.bootstrap
        membership = self.data.membership[group.plans, group.cells]
        overlap = Overlap.of(recording.joint[group.plans], self._deviations(group), membership)
        plans = group.plans[overlap.nonzero]
        if not len(plans):
            return None
        overlap = overlap.only(overlap.nonzero)
        residual = mean_of(overlap.residual)
        share = hypotheses.off_diagonal_share(self.data.products[:, group.cells, group.cells])
        square = (1 + self.margin) ** 2  # the margin is one of roots of mean squares
        return Superposition(
            level=group.level,
            residual=bootstrap.interval(residual),
            cosine=bootstrap.interval(mean_of(overlap.cosine)),
            residual_verdict=bootstrap.verdict(residual, -math.inf, self.margin),
            mean_square_ratio=bootstrap.interval(overlap.mean_square_ratio),
            mean_square_verdict=bootstrap.verdict(overlap.mean_square_ratio, 1 / square, square),
            off_diagonal_share=bootstrap.interval(share),
            orthogonality_verdict=bootstrap.verdict(lambda w: 1 - share(w), 1 / square, square),
            systematic_share=self._systematic_share(group),
            context_cosine=self._context_cosine(group),
            clusters=(bootstrap.prompts, len(plans)),
            floor_ratio=group.floor_ratio,
            plans=tuple(str(recording.plans[i]) for i in plans),
            low_steps=self.data.low_steps[plans],
            residual_by_plan=overlap.residual.mean(axis=1),
            cosine_by_plan=overlap.cosine.mean(axis=1),
            ratio_by_plan=overlap.measured.mean(axis=1) / overlap.superposed.mean(axis=1),
        )

    def design_free(self, group: Group, metric: str) -> DesignFreeCheck | None:
        """Compare what steps cost in both contexts; None without the plans, or all errors zero."""
        uniform, complements, steps = self._contexts(group)
        alone = self.data.singles[metric][group.cells][steps]
        if uniform is None or not len(complements) or not np.all(alone.sum(axis=0) > 0):
            return None
        joint = self.data.joint[metric]
        ratio = hypotheses.context_ratio(joint[uniform], joint[complements], alone)
        return DesignFreeCheck(
            level=group.level,
            metric=metric,
            steps=tuple(steps.tolist()),
            alone=alone.mean(axis=1),
            removed=(joint[uniform] - joint[complements]).mean(axis=1),
            ratio=self.bootstrap.interval(ratio),
            verdict=self.bootstrap.verdict(ratio, 1 / (1 + self.margin), 1 + self.margin),
            clusters=self.bootstrap.prompts,
            floor_ratio=group.floor_ratio,
        )

    def sensitivities(self, metrics: Sequence[str]) -> Iterator[Sensitivity]:
        """Give the mean single error of each step, level and metric."""
        for i, level in enumerate(self.data.recording.levels[1:]):
            for metric in metrics:
                errors = self.data.singles[metric][self.data.cells(i)]
                means = self.bootstrap.values(means_of(errors))
                low, high = self.bootstrap.ends(means)
                ratio, flagged = self.data.floor_ratio[i], self.data.flagged[i]
                yield Sensitivity(level, metric, means[0], low, high, ratio, flagged)

    def grams(self) -> Iterator[GramMatrix]:
        """Give each level's mean Gram matrix."""
        for i, level in enumerate(self.data.recording.levels[1:]):
            cells = self.data.cells(i)
            replicates = self.data.recording.replicates
            across = None
            if replicates is not None:
                rows = self.data.recording.replicate_rows
                singles = self.data.recording.singles[i][:, rows]
                across = inner_products(singles, replicates[i]).mean(axis=0)
            yield GramMatrix(level, self.data.products[:, cells, cells].mean(axis=0), across)

    def _deviations(self, group: Group) -> NDArray[np.float32]:
        singles = self.data.recording.singles
        return singles.reshape(-1, *singles.shape[2:])[group.cells]

    def _systematic_share(self, group: Group) -> Interval | None:
        """Compare the replicated single runs with their replicates."""
        recording = self.data.recording
        if recording.replicates is None:
            return None
        rows = recording.replicate_rows
        again = recording.replicates.reshape(-1, *recording.replicates.shape[2:])[group.cells]
        once = self._deviations(group)[:, rows]
        within = inner_products(once), inner_products(again)
        share = hypotheses.systematic_share(*within, inner_products(once, again))
        return self.bootstrap.of_rows(rows).interval(share)

    def _contexts(self, group: Group) -> tuple[int | None, NDArray[np.int64], NDArray[np.int64]]:
        """Find the all-low plan, the plans with one high step, and those steps."""
        membership = self.data.membership[group.plans, group.cells]
        high = membership.shape[1] - membership.sum(axis=1)
        uniform, complements = group.plans[high == 0], group.plans[high == 1]
        steps = np.argmin(membership[high == 1], axis=1)
        return (int(uniform[0]) if len(uniform) else None), complements, steps

    def _context_cosine(self, group: Group) -> Interval | None:
        uniform, complements, steps = self._contexts(group)
        if uniform is None or not len(complements):
            return None
        joint = self.data.recording.joint
        changes = joint[uniform].astype(np.float64) - joint[complements]
        overlap = Overlap.of(changes, self._deviations(group)[steps], np.eye(len(steps)))
        if not np.all(overlap.nonzero):
            return None
        return self.bootstrap.interval(mean_of(overlap.cosine))


def fidelity(recording: Recording, bootstrap: PromptBootstrap) -> Iterator[Fidelity]:
    """Metric by metric: the reference run where it has a value, then the joint plans; also the
    metrics that were asked for and are not available, with the reason.
    """
    about = recording.manifest.get("metrics", {})
    reference = str(PrecisionPlan.uniform(recording.levels[0], recording.steps))
    kinds = {reference: "reference"} | {
        str(plan): kind for plan, kind in zip(recording.plans, recording.kinds, strict=True)
    }
    rows = recording.table[recording.table["plan"].isin(kinds)]
    for metric, found in rows.groupby("metric", sort=False):
        unit = about.get(metric, {}).get("unit", "")
        for plan, values in found.groupby("plan", sort=False):
            means = _mean(_by_sample(values, recording), bootstrap)
            yield Fidelity(str(metric), str(plan), kinds[str(plan)], unit, means)
    for metric, said in about.items():
        if said["not_available"]:
            yield Fidelity(metric, "", "", said["unit"], None, said["not_available"])


def _by_sample(rows: pd.DataFrame, recording: Recording) -> Floats:
    """Values (n,) in the order of the recording's samples."""
    found = rows.set_index(["prompt_id", "seed"])["value"]
    wanted = pd.MultiIndex.from_tuples(recording.samples, names=["prompt_id", "seed"])
    values: Floats = found.reindex(wanted).to_numpy(dtype=np.float64)
    return values


def _mean(values: Floats, bootstrap: PromptBootstrap) -> Interval:
    if np.isfinite(values).all():
        return bootstrap.interval(mean_of(values))
    return Interval(float(values.mean()), math.nan, math.nan)
