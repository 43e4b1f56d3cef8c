"""Table: what each allocator finds at 20 steps of the embedded sd3, where no optimum is known."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pandas as pd

from analysis.allocators import COSTS
from analysis.base import Made, Reports, Script, TableFile
from analysis.suite_data import CHAOTIC, UNCHOSEN
from tmpdiff_bench.commands import run
from tmpdiff_bench.report.tables import Table

KEY = ("speedup asked", "allocator")


def make(reports: Reports) -> Iterator[Made]:
    """The table of all speedups."""
    files = sorted((reports.folder / "live-allocations").glob("speedup-*.json"))
    measured = [json.loads(path.read_text()) for path in files]
    frame = pd.DataFrame([row for one in measured for row in one["rows"]]).drop(columns="regret")
    text = frame.astype(object).copy()
    for name in ("speedup", "error", "predicted"):
        text[name] = text[name].map("{:.3g}".format).replace("nan", "-")
    text["allocator"] = text["allocator"].str.replace("_", " ")
    samples, steps = measured[0]["samples"], measured[0]["steps"]
    yield Table(
        "allocators-live",
        f"Allocators that measure as they go, {steps} steps",
        frame,
        text.astype(str),
        f"Latent RMSE, means over {samples} calibration samples. Costs: {COSTS.name} (an "
        "assumption). NFE: a sample's network evaluations with shared prefixes, of each allocator "
        "alone.",
    )


SCRIPT = Script(
    "allocators_live",
    make,
    inputs=("live-allocations/speedup-*.json",),
    outputs=(
        TableFile("allocators-live", KEY, elsewhere={"error": CHAOTIC}, rows_elsewhere=UNCHOSEN),
    ),
)

if __name__ == "__main__":
    run(SCRIPT.main)
