"""Table: does temporal mixed precision beat a uniform level, and fewer steps, at equal speedup?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from analysis.base import Made, Reports, Script, TableFile
from analysis.comparisons import matched
from analysis.suite_data import (
    ALL,
    ALPHA,
    CHAOTIC,
    DESIGNED,
    INPUTS,
    RIVALS,
    UNCHOSEN,
    allocator_label,
    results,
    scores,
)
from tmpdiff_bench.commands import run
from tmpdiff_bench.report.tables import Table, interval
from tmpdiff_bench.statistics import Interval
from tmpdiff_bench.suite import SuiteResults

KEYS = ("rival", "model", "steps", "levels", "allocator")


def table(found: SuiteResults) -> pd.DataFrame:
    """Rows by `KEYS`: geometric mean over prompts of error / rival's error on the same samples, its
    interval, p of a sign-flip test, and that of Holm over the allocators of one place.
    """
    found = dataclasses.replace(found, scores=scores(found))
    places = KEYS[1:-1]
    frames = []
    for rival in RIVALS:
        each = matched(found, baseline=rival, by=places)
        over_all = matched(found, baseline=rival, by=places[1:]).assign(model=ALL)
        frames += [each, over_all] if each["model"].nunique() > 1 else [each]
    frame = pd.concat(frames, ignore_index=True).rename(columns={"baseline": "rival"})
    frame = frame[frame["allocator"] != "exhaustive"]
    names = {"difference": "ratio", "low": "ratio_low", "high": "ratio_high"}
    frame = frame.rename(columns=names)
    frame[[*names.values()]] = np.exp(frame[[*names.values()]])
    frame["outcome"] = [outcome(*row) for row in frame[["ratio", "p_holm"]].to_numpy(float)]
    columns = [*KEYS, *names.values(), "p", "p_holm", "outcome", "prompts", "tasks"]
    return frame[[*columns, "speedup", "baseline_speedup"]]


def outcome(ratio: float, p_holm: float) -> str:
    """Better or worse where Holm's p is below 0.05, else undecided."""
    if not p_holm < ALPHA:
        return "undecided"
    return "better" if ratio < 1 else "worse"


def p_words(p: float) -> str:
    """A p value in three decimals."""
    if math.isnan(p):
        return "n/a"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def words(frame: pd.DataFrame) -> pd.DataFrame:
    """What a reader compares."""
    return pd.DataFrame(
        {
            "allocator": allocator_label(row["allocator"]),
            "rival": allocator_label(row["rival"]),
            "model": row["model"],
            "steps": str(row["steps"]),
            "levels": row["levels"],
            "speedup": f"{row['speedup']:.2f}",
            "rival's": f"{row['baseline_speedup']:.2f}",
            "error / rival's": interval(Interval.of(row, "ratio")),
            "p (Holm)": p_words(row["p_holm"]),
            "outcome": row["outcome"],
            "prompts": str(row["prompts"]),
        }
        for row in frame.to_dict("records")
    )


def make(reports: Reports) -> Iterator[Made]:
    """The table."""
    frame = table(results(reports.folder))
    yield Table(
        "rivals",
        "Against a uniform level and against fewer steps",
        frame,
        words(frame),
        "Latent RMSE over that of the rival at the same target speedup, geometric mean over "
        "evaluation prompts (all targets of the level set together), with 95 % bootstrap intervals "
        "by prompt; p of a sign-flip test by prompt, corrected by Holm over the allocators of one "
        "model, number of steps and set of levels. Best on calibration is, in each task, the "
        "plan of least calibration error of all allocators. Speedups reached are means over "
        "tasks: a uniform plan is often faster than asked.",
    )


SCRIPT = Script(
    "rivals",
    make,
    inputs=INPUTS,
    outputs=(
        TableFile(
            "rivals",
            KEYS,
            elsewhere={"ratio": CHAOTIC, "prompts": DESIGNED},
            rows_elsewhere=UNCHOSEN,
        ),
    ),
)

if __name__ == "__main__":
    run(SCRIPT.main)
