"""Table: where is "n first and m last steps high", which engines ship, good enough?"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from analysis.base import Made, Reports, Script, TableFile
from analysis.suite_data import (
    DESIGNED,
    INPUTS,
    against,
    by_prompt,
    chosen_on_calibration,
    mean_interval,
    ratio_interval,
    results,
)
from tmpdiff_bench.commands import run
from tmpdiff_bench.report.tables import Table, interval, number, percent
from tmpdiff_bench.statistics import Interval
from tmpdiff_bench.suite import SuiteResults

OURS = "first_last"
BEST_OTHER = "best other"
MARGIN = 0.10
KEYS = ("model", "steps", "levels", "target_speedup")


def paired(found: SuiteResults) -> pd.DataFrame:
    """Scores of `first_last` against those of the plan that is best on calibration without it."""
    rows = found.scores[found.scores["metric"] == "latent_rmse"]
    others = chosen_on_calibration(found, without=(OURS,))
    best = rows.merge(others, on=["task", "allocator"]).assign(allocator=BEST_OTHER)
    ours = rows[rows["allocator"] == OURS]
    both = against(pd.concat([ours, best], ignore_index=True), BEST_OTHER)
    return both[both["allocator"] == OURS]


def verdict(ratio: Interval) -> str:
    """Good enough if the whole interval is at most 10 % above the other's error."""
    if ratio.high <= 1 + MARGIN:
        return "good enough"
    return "not good enough" if ratio.low > 1 + MARGIN else "undecided"


def table(pairs: pd.DataFrame) -> pd.DataFrame:
    """Rows by `KEYS`: the ratio of errors, and the verdict."""
    rows = []
    for key, group in pairs.groupby(list(KEYS), sort=False):
        logs = by_prompt(group, "log_ratio")
        ratio = ratio_interval(mean_interval(logs))
        rows.append(
            {
                **dict(zip(KEYS, key, strict=True)),
                **ratio.columns("ratio"),
                "verdict": verdict(ratio),
                "prompts": len(logs),
            }
        )
    return pd.DataFrame(rows)


def make(reports: Reports) -> Iterator[Made]:
    """The table."""
    frame = table(paired(results(reports.folder)))
    text = pd.DataFrame(
        {
            "model": row["model"],
            "steps": str(row["steps"]),
            "levels": row["levels"],
            "target": number(row["target_speedup"]),
            "error / best other's": interval(Interval.of(row, "ratio")),
            "verdict": row["verdict"],
            "prompts": str(row["prompts"]),
        }
        for row in frame.to_dict("records")
    )
    yield Table(
        "first-last",
        "First and last steps high: good enough?",
        frame,
        text,
        "Latent RMSE of first-and-last-n over that of the plan with the least calibration error of "
        "all other allocators, geometric mean over evaluation prompts with 95 % bootstrap "
        f"intervals by prompt. Good enough: the whole interval is at most {percent(MARGIN)} above "
        "1; not good enough: the whole interval is above that. Rows are not corrected for their "
        "number.",
    )


SCRIPT = Script(
    "first_last",
    make,
    inputs=INPUTS,
    outputs=(TableFile("first-last", KEYS, elsewhere={"prompts": DESIGNED}),),
)

if __name__ == "__main__":
    run(SCRIPT.main)
