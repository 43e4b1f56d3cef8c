"""Table and figure: mean ranks of allocators by evaluation error, with critical differences."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.base import FigureFile, Made, Reports, Script, TableFile
from analysis.comparisons import ranks
from analysis.suite_data import DESIGNED, INPUTS, REFERENCE, allocator_label, results
from tmpdiff_bench.commands import run
from tmpdiff_bench.report.style import INK, MUTED, Drawing, canvas, house_style
from tmpdiff_bench.report.tables import Table
from tmpdiff_bench.suite import SuiteResults

KEYS = ("steps", "allocator")


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
    """Ranks as dots from the best up to the worst, a bar over each clique."""
    means = rows["mean_rank"].to_numpy(float)
    places = np.arange(len(means))[::-1]
    difference = float(rows["critical_difference"].iloc[0])
    ax.plot(means, places, "o", color=INK, ms=5)
    member_of = [set(names.split()) for names in rows["cliques"]]
    for shift, clique in enumerate(sorted(set().union(*member_of))):
        # right of the dots, each clique on its own line
        inside = [place for place, names in zip(places, member_of, strict=True) if clique in names]
        x = means.max() + 0.35 * (shift + 1)
        ax.plot([x, x], [min(inside), max(inside)], color="#0072B2", lw=2.5)
    top = len(means) - 0.4
    ax.plot([means.min(), means.min() + difference], [top, top], color=MUTED, lw=1.5)
    ax.text(means.min(), top + 0.15, "critical difference", color=MUTED, fontsize=8)
    ax.set_yticks(places, [allocator_label(name) for name in rows["allocator"]])
    ax.set(xlabel="mean rank (1 is best)", ylim=(-0.6, top + 0.9))
    first = rows.iloc[0]
    ax.set_title(f"{first['steps']} steps, {first['blocks']} blocks")


def figure(frame: pd.DataFrame) -> Drawing:
    """One panel per number of steps."""
    panels = [rows for _, rows in frame.groupby("steps")]
    with house_style():
        drawn, axes = canvas(len(panels), 1, 3.2 * len(panels))
        for ax, rows in zip(axes, panels, strict=True):
            draw(ax[0], rows)
    return Drawing(
        "critical-difference",
        "Mean ranks",
        "Mean rank by evaluation error. Allocators that one vertical bar joins do not differ at "
        "level 0.05 (Nemenyi's critical difference over blocks, the grey bar; a block is a model, "
        "prompt set and set of levels).",
        "Dots of mean ranks, "
        + "; ".join(
            f"at {rows['steps'].iloc[0]} steps from {allocator_label(rows['allocator'].iloc[0])} "
            f"(best) to {allocator_label(rows['allocator'].iloc[-1])}"
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
    yield figure(frame)


SCRIPT = Script(
    "ranks",
    make,
    inputs=INPUTS,
    outputs=(
        TableFile("ranks", KEYS, elsewhere={"allocators": DESIGNED, "blocks": DESIGNED}),
        FigureFile("critical-difference"),
    ),
)

if __name__ == "__main__":
    run(SCRIPT.main)
