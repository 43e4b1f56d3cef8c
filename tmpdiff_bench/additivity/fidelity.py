"""How far joint plans are from the reference, in every metric that the recording holds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tmpdiff_bench.additivity.hypotheses import PromptBootstrap, mean_of
from tmpdiff_bench.additivity.records import Fidelity, Floats
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.statistics import Interval

if TYPE_CHECKING:
    from tmpdiff_bench.trajectory.recording import Recording


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
