"""Table: does temporal mixed precision beat a uniform level, and fewer steps, at the same speedup?"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from analysis.base import Made, Reports, Script, Table, TableFile
from analysis.statistics import ALPHA, bootstrap_ratio, sign_flip
from analysis.suite_data import (
    INPUTS,
    RIVALS,
    against,
    allocator_label,
    bounds,
    by_prompt,
    results,
    scores,
    with_all,
)
from tmpdiff_bench.additivity import holm
from tmpdiff_bench.additivity.records import Interval
from tmpdiff_bench.additivity.wording import interval
from tmpdiff_bench.commands import run

KEYS = ("rival", "model", "steps", "levels", "allocator")


def table(errors: pd.DataFrame) -> pd.DataFrame:
    """Rows by `KEYS`: geometric mean over prompts of error / rival's error on the same samples, its
    interval, p of a sign-flip test, and that of Holm over all rows of the allocator.
    """
    rows = []
    for rival in RIVALS:
        paired = with_all(against(errors, rival))
        paired = paired[~paired["allocator"].isin([rival, "exhaustive"])]
        for key, group in paired.groupby(list(KEYS[1:]), sort=False):
            logs = by_prompt(group, "log_ratio")
            rows.append(
                {
                    **dict(zip(KEYS, (rival, *key), strict=True)),
                    **bounds(bootstrap_ratio(logs), "ratio"),
                    "p": sign_flip(logs),
                    "prompts": len(logs),
                    "tasks": group["task"].nunique(),
                }
            )
    frame = pd.DataFrame(rows)
    # a family is what one allocator claims: so a further allocator changes no outcome of others
    frame["p_holm"] = frame.groupby("allocator")["p"].transform(holm)
    frame["outcome"] = [outcome(*row) for row in frame[["ratio", "p_holm"]].to_numpy(float)]
    return frame


def outcome(ratio: float, p_holm: float) -> str:
    """Better or worse where Holm's p is below 0.05, else undecided."""
    if not p_holm < ALPHA:
        return "undecided"
    return "better" if ratio < 1 else "worse"


def p_words(p: float) -> str:
    """A p value in three decimals."""
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
            "error / rival's": interval(
                Interval(row["ratio"], row["ratio_low"], row["ratio_high"])
            ),
            "p (Holm)": p_words(row["p_holm"]),
            "outcome": row["outcome"],
            "prompts": str(row["prompts"]),
        }
        for row in frame.to_dict("records")
    )


def make(reports: Reports) -> Iterator[Made]:
    """The table."""
    frame = table(scores(results(reports.folder)))
    yield Table(
        "rivals",
        "Against a uniform level and against fewer steps",
        frame,
        words(frame),
        "Latent RMSE over that of the rival at the same target speedup, geometric mean over "
        "evaluation prompts (all targets of the level set together), with 95 % bootstrap intervals "
        "by prompt; p of a sign-flip test by prompt, corrected by Holm over all rows of the "
        "allocator. Best on calibration is, in each task, the plan of least "
        "calibration error of all allocators. A uniform plan must meet the target alone, so it is "
        "often faster than asked: its speedup is in the table of quality.",
    )


SCRIPT = Script(__spec__.name, make, inputs=INPUTS, outputs=(TableFile("rivals", KEYS),))

if __name__ == "__main__":
    run(SCRIPT.main)
