"""Table: how far apart the same cells are in other batches, with other threads or dtypes."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from analysis.base import Made, Reports, Script, TableFile
from analysis.suite_data import DESIGNED, INPUTS, results
from tmpdiff_bench.commands import run
from tmpdiff_bench.report.tables import Table, percent

KEYS = ("model", "prompt_set", "steps", "condition", "plan")
INTERPRETED = 0.1  # of a single-step error: below it drift is no part of what is interpreted


def table(drift: pd.DataFrame) -> pd.DataFrame:
    """Rows by `KEYS`: drift beside the smallest single-step error, over samples."""
    grouped = drift.groupby(list(KEYS), sort=False)
    return grouped.agg(
        drift=("latent_rmse", "median"),
        largest=("latent_rmse", "max"),
        smallest_single_error=("smallest_single_error", "median"),
        ratio=("ratio", "median"),
        largest_ratio=("ratio", "max"),
        samples=("ratio", "size"),
    ).reset_index()


def make(reports: Reports) -> Iterator[Made]:
    """The table."""
    frame = table(results(reports.folder).drift)
    text = pd.DataFrame(
        {
            "condition": row["condition"],
            "model": row["model"],
            "prompt set": row["prompt_set"],
            "steps": str(row["steps"]),
            "plan": row["plan"],
            "drift": f"{row['drift']:.2g}",
            "smallest single-step error": f"{row['smallest_single_error']:.2g}",
            "ratio": f"{row['ratio']:.2g}",
            "largest ratio": f"{row['largest_ratio']:.2g}",
            "samples": str(row["samples"]),
        }
        for row in frame.to_dict("records")
    )
    yield Table(
        "drift",
        "Drift beside the smallest single-step error",
        frame,
        text,
        "Latent RMSE between a cell and the same cell computed under another condition, beside the "
        "smallest error that one low step causes on the same samples (medians over samples). Where "
        f"the ratio is above {percent(INTERPRETED)}, the smallest single-step errors are not to be "
        "interpreted across such conditions.",
    )


SCRIPT = Script(
    "drift",
    make,
    inputs=INPUTS,
    outputs=(TableFile("drift", KEYS, elsewhere={"samples": DESIGNED}),),
)

if __name__ == "__main__":
    run(SCRIPT.main)
