"""Table and figure: how far each allocator is from the optimum at 8 steps, and at what price."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from analysis.base import FigureFile, Made, Reports, Script, TableFile
from analysis.suite_data import (
    ALL,
    DESIGNED,
    INPUTS,
    allocator_label,
    mean_interval,
    results,
    with_all,
)
from tmpdiff_bench.commands import run
from tmpdiff_bench.report.style import INK, Drawing, canvas, house_style
from tmpdiff_bench.report.tables import Table, interval, percent
from tmpdiff_bench.statistics import Interval

KEYS = ("model", "levels", "allocator")
OPTIMAL = 1e-9  # a regret below it is none
LEAST = 0.001  # regrets below 0.1 % are drawn there, as an axis of logarithms has no 0


def table(allocations: pd.DataFrame) -> pd.DataFrame:
    """Rows by `KEYS`: mean regret with its interval over groups (model x prompt set), which share
    measurements and are the independent units; the share of optima found; means of what was paid.
    """
    known = allocations[(allocations["status"] == "ok") & allocations["regret"].notna()]
    known = known[known["allocator"] != "fewer_steps"]  # none of the plans that are compared
    known = with_all(with_all(known), "levels")
    rows = []
    for key, group in known.groupby(list(KEYS), sort=False):
        units = group.assign(unit=group["task"].str.split("/").str[:2].str.join("/"))
        means = units.groupby("unit")["regret"].mean().to_numpy(float)
        rows.append(
            {
                **dict(zip(KEYS, key, strict=True)),
                **mean_interval(means, least=0).columns("regret"),
                "median": group["regret"].median(),
                "largest": group["regret"].max(),
                "optima": (group["regret"] <= OPTIMAL).mean(),
                "tasks": len(group),
                "groups": len(means),
                "evaluations": group["evaluations"].mean(),
                "nfe": group["nfe"].mean(),
                "nfe_plain": group["nfe_plain"].mean(),
                "seconds": group["seconds"].mean(),
            }
        )
    frame = pd.DataFrame(rows)
    return frame.sort_values([*KEYS[:2], "regret", "evaluations"], kind="stable")


def words(frame: pd.DataFrame) -> pd.DataFrame:
    """What a reader compares."""
    return pd.DataFrame(
        {
            "allocator": allocator_label(row["allocator"]),
            "model": row["model"],
            "levels": row["levels"],
            "mean regret": interval(Interval.of(row, "regret"), percent),
            "median": percent(row["median"]),
            "largest": percent(row["largest"]),
            "optimum found": percent(row["optima"]),
            "evaluations": f"{row['evaluations']:.0f}",
            "NFE": f"{row['nfe']:,.0f}",
            "saved by shared prefixes": f"{row['nfe_plain'] / row['nfe']:.1f}x",
            "tasks": str(row["tasks"]),
        }
        for row in frame.to_dict("records")
    )


def figure(frame: pd.DataFrame) -> Drawing:
    """Mean regret of each allocator over all models and level sets."""
    rows = frame
    for column in ("model", "levels"):
        whole = rows[rows[column] == ALL]
        rows = whole if len(whole) else rows
    rows = rows.sort_values(["regret", "evaluations"], ascending=False)
    places = np.arange(len(rows))
    mean, low, high = rows[["regret", "regret_low", "regret_high"]].clip(lower=LEAST).to_numpy().T
    with house_style():
        drawn, [[ax]] = canvas(1, 1, 0.7 + 0.25 * len(rows))
        ax.hlines(places, low, high, color=INK, lw=1.2)
        ax.plot(mean, places, "o", color=INK, ms=4.5)
        ax.set_yticks(places, map(allocator_label, rows["allocator"]))
        ax.set(xscale="log", xlabel="mean regret")
        ax.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        paid = ax.secondary_yaxis("right")
        paid.set_yticks(places, [f"{value:.0f}" for value in rows["evaluations"]])
        paid.set_ylabel("evaluations (mean over tasks)")
        paid.spines["right"].set_visible(False)
    return Drawing(
        "regret",
        "Regret, and its price",
        "Mean regret at 8 steps (error over the least possible error of a plan within the budget, "
        "minus 1, on calibration prompts) with 95 % intervals over groups; 0.1 % stands for "
        "everything below. On the right, the plans that were evaluated.",
        "Mean regret of allocators, the least on top: "
        + ", ".join(map(allocator_label, rows["allocator"][::-1]))
        + ".",
        drawn,
    )


def make(reports: Reports) -> Iterator[Made]:
    """Table and figure."""
    frame = table(results(reports.folder).allocations)
    yield Table(
        "regret",
        "Regret at 8 steps, and its price",
        frame,
        words(frame),
        "Regret: error over the least error of all plans within the budget, minus 1, on the "
        "calibration prompts that allocators see. Means over tasks, with 95 % bootstrap "
        "intervals over groups (model x prompt set). NFE: over all calibration "
        "samples, with shared prefixes.",
    )
    yield figure(frame)


SCRIPT = Script(
    "regret",
    make,
    inputs=INPUTS,
    outputs=(
        TableFile("regret", KEYS, elsewhere={"tasks": DESIGNED, "groups": DESIGNED}),
        FigureFile("regret"),
    ),
)

if __name__ == "__main__":
    run(SCRIPT.main)
