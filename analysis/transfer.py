"""Table: what does it cost to run a plan elsewhere than where it was allocated?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from analysis.base import Made, Reports, Script, Table, TableFile
from analysis.statistics import bootstrap_ratio, sign_flip
from analysis.suite_data import (
    ERROR,
    INPUTS,
    SAMPLE,
    allocator_label,
    bounds,
    by_prompt,
    results,
    with_all,
)
from tmpdiff_bench.additivity import holm
from tmpdiff_bench.additivity.records import Interval
from tmpdiff_bench.additivity.wording import interval, percent
from tmpdiff_bench.commands import run

KEYS = ("kind", "model", "allocator")
KINDS = {
    "prompt_set": "another prompt set",
    "seed": "another seed",
    "steps": "another number of steps",
    "language": "another language",
}


def paired(transfers: pd.DataFrame) -> pd.DataFrame:
    """Rows of plans from elsewhere, with the log of their error over the native plan's."""
    rows = transfers[transfers["metric"] == ERROR]
    on = ["kind", "allocator", *SAMPLE]
    native = rows.loc[rows["native"], [*on, "value", "plan"]].drop_duplicates(on)
    both = rows[~rows["native"]].merge(native, on=on, suffixes=("", "_native"))
    ratio = np.log(both["value"] / both["value_native"])
    return both.assign(log_ratio=ratio, same=both["plan"] == both["plan_native"])


def table(pairs: pd.DataFrame) -> pd.DataFrame:
    """Rows by `KEYS`: the ratio of errors, the share of plans that are the native one."""
    rows = []
    pairs = with_all(with_all(pairs), "allocator")
    for key, group in pairs.groupby(list(KEYS), sort=False):
        logs = by_prompt(group, "log_ratio")
        rows.append(
            {
                **dict(zip(KEYS, key, strict=True)),
                **bounds(bootstrap_ratio(logs), "ratio"),
                "p": sign_flip(logs),
                "same_plan": group["same"].mean(),
                "within_budget": group["within_budget"].astype(float).mean(),
                "prompts": len(logs),
                "tasks": group["task"].nunique(),
            }
        )
    frame = pd.DataFrame(rows)
    frame["p_holm"] = holm(frame["p"])
    return frame


def make(reports: Reports) -> Iterator[Made]:
    """The table."""
    frame = table(paired(results(reports.folder).transfers))
    text = pd.DataFrame(
        {
            "plan from": KINDS.get(row["kind"], row["kind"]),
            "model": row["model"],
            "allocator": allocator_label(row["allocator"]),
            "error / native plan's": interval(
                Interval(row["ratio"], row["ratio_low"], row["ratio_high"])
            ),
            "p (Holm)": f"{row['p_holm']:.3f}",
            "same plan": percent(row["same_plan"]),
            "within budget": percent(row["within_budget"]),
            "prompts": str(row["prompts"]),
        }
        for row in frame.to_dict("records")
    )
    yield Table(
        "transfer",
        "Plans used elsewhere",
        frame,
        text,
        "Latent RMSE, on evaluation prompts, of a plan that was allocated elsewhere over that of "
        "the plan allocated in place: geometric means over prompts with 95 % bootstrap intervals "
        "by prompt, p of sign-flip tests corrected by Holm. Same plan: how often both are one.",
    )


SCRIPT = Script(__spec__.name, make, inputs=INPUTS, outputs=(TableFile("transfer", KEYS),))

if __name__ == "__main__":
    run(SCRIPT.main)
