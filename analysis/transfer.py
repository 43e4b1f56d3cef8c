"""Table: what does it cost to run a plan elsewhere than where it was allocated?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from analysis.base import Made, Reports, Script, TableFile
from analysis.comparisons import transfer_losses
from analysis.rivals import p_words
from analysis.suite_data import ALL, INPUTS, allocator_label, results
from tmpdiff_bench.commands import run
from tmpdiff_bench.report.tables import Table, interval, percent
from tmpdiff_bench.statistics import Interval, holm
from tmpdiff_bench.suite import SuiteResults

KEYS = ("kind", "model", "allocator")
KINDS = {
    "prompt_set": "another prompt set",
    "seed": "another seed",
    "steps": "another number of steps",
    "language": "another language",
}


def table(found: SuiteResults) -> pd.DataFrame:
    """Rows by `KEYS`: the ratio of errors on the same samples, the share of plans that are the
    native one; over all models and allocators too.
    """
    frame = pd.concat(
        [
            transfer_losses(found, by=("kind",)).assign(model=ALL, allocator=ALL),
            transfer_losses(found, by=KEYS),
        ],
        ignore_index=True,
    )
    names = {"difference": "ratio", "low": "ratio_low", "high": "ratio_high"}
    frame = frame.rename(columns=names)
    frame[[*names.values()]] = np.exp(frame[[*names.values()]])
    frame["p_holm"] = holm(frame["p"].tolist())
    return frame[[*KEYS, *names.values(), "p", "p_holm", "same_plan", "prompts", "tasks"]]


def make(reports: Reports) -> Iterator[Made]:
    """The table."""
    frame = table(results(reports.folder))
    text = pd.DataFrame(
        {
            "plan from": KINDS.get(row["kind"], row["kind"]),
            "model": row["model"],
            "allocator": allocator_label(row["allocator"]),
            "error / native plan's": interval(Interval.of(row, "ratio")),
            "p (Holm)": p_words(row["p_holm"]),
            "same plan": percent(row["same_plan"]),
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
        "by prompt, p of sign-flip tests corrected by Holm over the table. Same plan: how often "
        "both are one. Plans from another number of steps count where they meet the budget.",
    )


SCRIPT = Script(
    "transfer",
    make,
    inputs=INPUTS,
    outputs=(TableFile("transfer", KEYS),),
)

if __name__ == "__main__":
    run(SCRIPT.main)
