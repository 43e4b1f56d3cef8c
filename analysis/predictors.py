"""Table: R² about the identity line of every predictor, by model, level and metric, over plans
(between their mean log errors) and over samples (every prompt and seed, in the metric's units).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from analysis.base import Made, Reports, Script, TableFile
from tmpdiff_bench.commands import run
from tmpdiff_bench.report.style import metric_label, predictor_label
from tmpdiff_bench.report.tables import Table

SUMMARIES = "additivity/*/summary.json"
KEYS = ("model", "metric", "predictor", "over")
OVER = {"plans": "r2_plans", "samples": "r2_identity"}


def table(paths: Sequence[Path]) -> pd.DataFrame:
    """Rows by `KEYS` of all reports; a column per level, NaN where a predictor is not defined."""
    rows = []
    for path in paths:
        summary = json.loads(path.read_text(encoding="utf-8"))
        for score in summary["scores"]:
            for over, r2 in OVER.items():
                named = {"model": summary["manifest"]["title"], "over": over}
                named |= {name: score[name] for name in ("metric", "predictor", "level")}
                rows.append({**named, "r2": (score["test"] or {}).get(r2)})
    frame = pd.DataFrame(rows).astype({"r2": float})
    order = pd.MultiIndex.from_frame(frame[[*KEYS]].drop_duplicates())
    wide = frame.pivot(index=[*KEYS], columns="level", values="r2")[[*frame["level"].unique()]]
    return wide.loc[order].reset_index()


def make(reports: Reports) -> Iterator[Made]:
    """The table of all reports."""
    wide = table(sorted(reports.folder.glob(SUMMARIES)))
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
    inputs=(SUMMARIES,),
    outputs=(TableFile("predictors", KEYS),),
)

if __name__ == "__main__":
    run(SCRIPT.main)
