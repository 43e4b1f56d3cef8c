"""Table: R² about the identity line of every predictor, by model, level and metric, over plans
(between their mean log errors) and over samples (every prompt and seed, in the metric's units).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from analysis.base import Made, Reports, Script, Table, TableFile
from tmpdiff_bench.additivity import analyse
from tmpdiff_bench.additivity.style import metric_label, predictor_label
from tmpdiff_bench.commands import run
from tmpdiff_bench.trajectory import Recording

RECORDINGS = "additivity-*/recording"


def table(recordings: Sequence[Path]) -> pd.DataFrame:
    """Rows by model, metric, predictor and what R² is over; a column per level ("-": none)."""
    frames = []
    for path in recordings:
        recording = Recording.open(path)
        scores = analyse(recording).scores_frame()
        frames.append(scores.assign(model=recording.manifest["title"]))
    joined = pd.concat(frames, ignore_index=True)
    levels = list(dict.fromkeys(joined["level"]))
    index = ["model", "metric", "predictor", "over"]
    joined = joined.melt([*index[:3], "level"], ["r2_plans", "r2_identity"], "over", "r2")
    joined["over"] = joined["over"].map({"r2_plans": "plans", "r2_identity": "samples"})
    wide = joined.pivot(index=index, columns="level", values="r2")[levels]
    order = joined[index].drop_duplicates().apply(tuple, axis=1)
    return wide.loc[list(order)].reset_index()


def make(reports: Reports) -> Iterator[Made]:
    """The table of all recordings."""
    wide = table(sorted(reports.folder.glob(RECORDINGS)))
    shown = wide.map(lambda v: f"{v:.3f}" if isinstance(v, float) else v).replace("nan", "-")
    shown["metric"] = shown["metric"].map(metric_label)
    shown["predictor"] = shown["predictor"].map(predictor_label)
    yield Table(
        "predictors",
        "R² about the identity line",
        wide,
        shown,
        "Of every predictor of a joint error from single ones, over plans (between their mean log "
        "errors) and over samples (every prompt and seed); below 0 the mean would predict better.",
    )


SCRIPT = Script(
    "predictors",
    make,
    inputs=(f"{RECORDINGS}/manifest.json",),
    outputs=(TableFile("predictors", ("model", "metric", "predictor", "over")),),
)

if __name__ == "__main__":
    run(SCRIPT.main)
