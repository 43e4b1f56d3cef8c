"""Table: which hypothesis about single-step errors holds, for which model and level."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.base import Made, Reports, Script, TableFile
from analysis.suite_data import DESIGNED
from tmpdiff_bench.commands import run
from tmpdiff_bench.report.style import MAIN_METRIC
from tmpdiff_bench.report.tables import Table, interval, percent
from tmpdiff_bench.statistics import Interval

SUMMARIES = "additivity/*/summary.json"
KEYS = ("model", "level", "hypothesis")
# name: (key of the number, key of the verdict, what the number is)
OF_VECTORS = {
    "H1": ("residual", "residual_verdict", "relative residual"),
    "H1m": ("mean_square_ratio", "mean_square_verdict", "mean-square ratio"),
    "H2": ("off_diagonal_share", "orthogonality_verdict", "off-diagonal share"),
}
PREDICTED = {"H3": "sum", "root sum of squares": "root_sum_squares", "Gram matrix": "gram"}


def row(
    summary: dict[str, Any], level: str, name: str, what: str, number: Any, verdict: str
) -> Any:
    """One line; `number` is an interval as JSON has it, or None."""
    ends = number or dict.fromkeys(("estimate", "low", "high"))
    return {
        "model": summary["manifest"]["title"],
        "level": level,
        "hypothesis": name,
        "quantity": what,
        "estimate": ends["estimate"],
        "low": ends["low"],
        "high": ends["high"],
        "verdict": verdict,
        "prompts": summary["prompts"],
    }


def rows(summary: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All lines of one report: vectors (H1, H1m, H2), then errors (H3 and its rivals)."""
    for record in summary["superposition"]:
        for name, (key, verdict, what) in OF_VECTORS.items():
            yield row(summary, record["level"], name, what, record[key], record[verdict])
    for score in summary["scores"]:
        for name, predictor in PREDICTED.items():
            if (score["metric"], score["predictor"]) == (MAIN_METRIC, predictor):
                ratio = score["test"] and score["test"]["ratio"]
                what = "joint / predicted"
                yield row(summary, score["level"], name, what, ratio, score["verdict"])


def table(paths: list[Path]) -> pd.DataFrame:
    """Rows by `KEYS` of all reports."""
    summaries = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    frame = pd.DataFrame(line for summary in summaries for line in rows(summary))
    return frame.sort_values(["model", "level"], kind="stable")


def make(reports: Reports) -> Iterator[Made]:
    """The table."""
    frame = table(sorted(reports.folder.glob(SUMMARIES)))
    shown = []
    for line in frame.to_dict("records"):
        share = percent if line["quantity"] == OF_VECTORS["H2"][2] else None
        shown.append(
            {
                "model": line["model"],
                "level": line["level"],
                "hypothesis": line["hypothesis"],
                "quantity": line["quantity"],
                "estimate": interval(Interval(line["estimate"], line["low"], line["high"]), share),
                "verdict": line["verdict"],
            }
        )
    yield Table(
        "hypotheses",
        "Hypotheses by model and level",
        frame,
        pd.DataFrame(shown, dtype=object),
        "H1: joint deviations are the sums of single-step deviations as vectors (residual 0). H1m: "
        "they are so in mean square (ratio 1). H2: deviations of different steps are orthogonal "
        "(share 0). H3: the joint latent RMSE is the sum of the single-step ones (joint / "
        "predicted 1); beside it the root sum of squares, and the Gram matrix of deviations. "
        "95 % intervals; verdicts by the rule that each model's report prints.",
    )


SCRIPT = Script(
    "hypotheses",
    make,
    inputs=(SUMMARIES,),
    outputs=(TableFile("hypotheses", KEYS, elsewhere={"prompts": DESIGNED}),),
)

if __name__ == "__main__":
    run(SCRIPT.main)
