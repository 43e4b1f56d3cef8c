"""Mean ranks of allocators by evaluation error, and their errors over one allocator's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.base import FigureFile, Made, Reports, Script, TableFile
from analysis.comparisons import matched, ranks
from analysis.suite_data import DESIGNED, INPUTS, REFERENCE, allocator_label, results
from tmpdiff_bench.commands import run
from tmpdiff_bench.report.style import INK, MUTED, Drawing, canvas, house_style, log_axis
from tmpdiff_bench.report.tables import Table
from tmpdiff_bench.suite import SuiteResults

KEYS = ("steps", "allocator")
BASELINE = "knapsack"


def table(found: SuiteResults) -> pd.DataFrame:
    """Rows by `KEYS`: mean rank over blocks (model, prompt set and levels) of the allocators that
    ran on all tasks of that step count; 1 is best.
    """
    rows = []
    for steps in sorted(found.scores["steps"].unique()):
        ranked = ranks(found, tasks=found.scores["steps"] == steps)
        cliques = [set(clique) for clique in ranked.cliques]
        for rank, allocator in sorted(zip(ranked.mean_ranks, ranked.names, strict=True)):
            inside = [str(i + 1) for i, clique in enumerate(cliques) if allocator in clique]
            rows.append(
                {
                    "steps": steps,
                    "allocator": allocator,
                    "mean_rank": rank,
                    "critical_difference": ranked.critical_difference,
                    "cliques": " ".join(inside),
                    "friedman_p": ranked.friedman_p,
                    "allocators": len(ranked.names),
                    "blocks": ranked.blocks,
                }
            )
    return pd.DataFrame(rows)


def draw(ax: Axes, rows: pd.DataFrame) -> None:
    """Ratios as dots with their intervals, the least on top."""
    most = rows["tasks"].max()
    places = np.arange(len(rows))[::-1]
    ax.axvline(1, color=MUTED, lw=0.9)
    ax.hlines(places, rows["low"], rows["high"], color=INK, lw=1.2)
    ax.plot(rows["ratio"], places, "o", color=INK, ms=4.5)
    labels = [
        allocator_label(row["allocator"]) + (f" ({row['tasks']})" if row["tasks"] < most else "")
        for row in rows.to_dict("records")
    ]
    ax.set_yticks(places, labels)
    # of one prompt there is no interval
    reach = rows[["ratio", "low", "high"]]
    limits = reach.min(axis=None) / 1.05, reach.max(axis=None) * 1.05
    ax.set(xscale="log", xlim=limits, ylim=(-0.6, len(rows) - 0.4))
    log_axis(ax.xaxis, *limits, least=3)
    ax.set_title(f"{rows['steps'].iloc[0]} steps, {most} tasks")


def figure(found: SuiteResults) -> Drawing:
    """One panel per number of steps, every allocator's error over `BASELINE`'s."""
    frame = matched(found, baseline=BASELINE, by=("steps",)).sort_values("difference")
    frame["ratio"] = np.exp(frame["difference"])
    frame[["low", "high"]] = np.exp(frame[["low", "high"]])
    panels = [rows for _, rows in frame.groupby("steps")]
    with house_style():
        heights = [len(rows) + 1 for rows in panels]
        drawn, axes = canvas(len(panels), 1, 0.25 * (sum(heights) + 4), height_ratios=heights)
        for ax, rows in zip(axes, panels, strict=True):
            draw(ax[0], rows)
        axes[-1][0].set_xlabel(f"error over {BASELINE}'s on evaluation prompts")
    return Drawing(
        "errors-over-knapsack",
        f"Errors over {BASELINE}'s",
        f"Latent RMSE over that of {BASELINE}'s plan on the same evaluation samples, geometric "
        "means over prompts with 95 % intervals; left of 1 is better. In brackets: tasks, where an "
        "allocator ran on fewer than the others.",
        f"Ratios of errors to {BASELINE}'s, "
        + "; ".join(
            f"at {rows['steps'].iloc[0]} steps from {rows['ratio'].iloc[0]:.2f} of "
            f"{allocator_label(rows['allocator'].iloc[0])} to {rows['ratio'].iloc[-1]:.2f} of "
            f"{allocator_label(rows['allocator'].iloc[-1])}"
            for rows in panels
        )
        + ".",
        drawn,
    )


def make(reports: Reports) -> Iterator[Made]:
    """Table and figure."""
    found = results(reports.folder)
    frame = table(found)
    text = pd.DataFrame(
        {
            "allocator": allocator_label(row["allocator"]),
            "steps": str(row["steps"]),
            "mean rank": f"{row['mean_rank']:.2f}",
            "critical difference": f"{row['critical_difference']:.2f}",
            "blocks": str(row["blocks"]),
        }
        for row in frame.to_dict("records")
    )
    left = sorted(set(found.scores["allocator"]) - set(frame["allocator"]) - {REFERENCE})
    names = ", ".join(map(allocator_label, left))
    yield Table(
        "ranks",
        "Mean ranks",
        frame,
        text,
        "By mean log error on evaluation prompts over the targets of a block (model, prompt set "
        "and levels), then averaged over blocks; 1 is best. Differences below the critical one "
        "(Nemenyi, level 0.05) are not significant. Ranked are those that ran on every task"
        + (f"; not so {names}." if left else "."),
    )
    yield figure(found)


SCRIPT = Script(
    "ranks",
    make,
    inputs=INPUTS,
    outputs=(
        TableFile("ranks", KEYS, elsewhere={"allocators": DESIGNED, "blocks": DESIGNED}),
        FigureFile("errors-over-knapsack"),
    ),
)

if __name__ == "__main__":
    run(SCRIPT.main)
