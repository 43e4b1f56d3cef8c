"""Table: what ran of the suite: tasks and allocators, and what was left out and why."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.base import Made, Reports, Script, TableFile
from analysis.suite_data import INPUTS, allocator_label, results
from tmpdiff_bench.commands import run
from tmpdiff_bench.report.tables import Table

STATUSES = ("ok", "left out", "infeasible", "no weights", "failed")


def make(reports: Reports) -> Iterator[Made]:
    """The table."""
    found = results(reports.folder)
    rows = found.allocations
    keys = ["model", "steps", "levels", "allocator"]
    counts = rows.groupby([*keys, "status"], sort=False).size().unstack(fill_value=0)
    counts = counts.reindex(columns=list(STATUSES), fill_value=0).reset_index()
    shown = counts.drop(columns="levels").groupby(["model", "steps", "allocator"], sort=False).sum()
    text = shown.reset_index().astype(str)
    text["allocator"] = text["allocator"].map(allocator_label)
    reasons = sorted({reason for reason in rows["reason"] if reason})
    absent = found.manifest["absent_models"]
    lacking = f" Not installed: {', '.join(absent)}." if absent else ""
    yield Table(
        "tasks",
        "What ran",
        counts,
        text[["allocator", *text.columns.drop("allocator")]],
        f"Tasks of each allocator by what became of them (suite version "
        f"{found.manifest['suite_version']}, profile {found.manifest['profile']}).{lacking}"
        + (f" Reasons given: {'; '.join(reasons)}." if reasons else ""),
    )


SCRIPT = Script(
    "tasks",
    make,
    inputs=INPUTS,
    outputs=(TableFile("tasks", ("model", "steps", "levels", "allocator"), kernels=False),),
)

if __name__ == "__main__":
    run(SCRIPT.main)
