"""Table and figure: mean ranks of allocators by evaluation error, with critical differences."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.base import FigureFile, Made, Reports, Script, Table, TableFile
from analysis.statistics import critical_difference
from analysis.suite_data import ERROR, INPUTS, allocator_label, results
from tmpdiff_bench.additivity.style import INK, MUTED, Drawing, canvas, house_style
from tmpdiff_bench.commands import run

KEYS = ("steps", "allocator")
UNIT = ["model", "prompt_set"]  # tasks of one share samples and measurements: one block


def table(errors: pd.DataFrame) -> pd.DataFrame:
    """Rows by `KEYS`: mean rank over blocks. In a block, an allocator's rank is its mean over the
    tasks. Ranked are the allocators that ran in every block of that step count; ties share ranks.
    """
    rows = []
    for steps, group in errors.groupby("steps", sort=True):
        means = group.groupby([*UNIT, "task", "allocator"])["value"].mean().unstack()
        means = means.dropna(axis="columns")
        if means.shape[1] < 2:
            continue
        # a billionth apart is the same plan
        ranks = means.map(lambda value: float(f"{value:.9g}")).rank(axis="columns")
        blocks = ranks.groupby(level=UNIT).mean()
        difference = critical_difference(blocks.shape[1], len(blocks))
        for allocator, rank in blocks.mean().sort_values(kind="stable").items():
            rows.append(
                {
                    "steps": steps,
                    "allocator": allocator,
                    "mean_rank": rank,
                    "critical_difference": difference,
                    "allocators": blocks.shape[1],
                    "blocks": len(blocks),
                    "tasks": len(ranks),
                }
            )
    return pd.DataFrame(rows)


def cliques(ranks: np.ndarray[tuple[int], np.dtype[np.float64]], difference: float) -> list[slice]:
    """Largest runs of sorted ranks that differ by less than the critical difference."""
    found: list[slice] = []
    for start, rank in enumerate(ranks):
        end = int(np.searchsorted(ranks, rank + difference, side="left"))
        if end - start > 1 and (not found or end > found[-1].stop):
            found.append(slice(start, end))
    return found


def draw(ax: Axes, rows: pd.DataFrame) -> None:
    """Ranks as dots from the best up to the worst, a bar over each clique."""
    ranks = rows["mean_rank"].to_numpy(float)
    places = np.arange(len(ranks))[::-1]
    difference = float(rows["critical_difference"].iloc[0])
    ax.plot(ranks, places, "o", color=INK, ms=5)
    for shift, clique in enumerate(cliques(ranks, difference)):
        # right of the dots, each clique on its own line
        x = ranks.max() + 0.35 * (shift + 1)
        ax.plot([x, x], [places[clique][-1], places[clique][0]], color="#0072B2", lw=2.5)
    top = len(ranks) - 0.4
    ax.plot([ranks.min(), ranks.min() + difference], [top, top], color=MUTED, lw=1.5)
    ax.text(ranks.min(), top + 0.15, "critical difference", color=MUTED, fontsize=8)
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
        "level 0.05 (Nemenyi's critical difference over blocks, the grey bar; a block is a model "
        "and prompt set).",
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
    scores = results(reports.folder).scores
    errors = scores[scores["metric"] == ERROR]
    frame = table(errors)
    text = pd.DataFrame(
        {
            "allocator": allocator_label(row["allocator"]),
            "steps": str(row["steps"]),
            "mean rank": f"{row['mean_rank']:.2f}",
            "critical difference": f"{row['critical_difference']:.2f}",
            "blocks": str(row["blocks"]),
            "tasks": str(row["tasks"]),
        }
        for row in frame.to_dict("records")
    )
    left = sorted(set(errors["allocator"]) - set(frame["allocator"]))
    names = ", ".join(map(allocator_label, left))
    yield Table(
        "ranks",
        "Mean ranks",
        frame,
        text,
        "Of the mean evaluation error (1 is best): in every task, then averaged over the tasks of "
        "a block (model x prompt set), then over blocks. Differences below the critical one "
        "(Nemenyi, level 0.05) are not significant. Ranked are those that ran on every task"
        + (f"; not so {names}." if left else "."),
    )
    yield figure(frame)


SCRIPT = Script(
    __spec__.name,
    make,
    inputs=INPUTS,
    outputs=(TableFile("ranks", KEYS), FigureFile("critical-difference")),
)

if __name__ == "__main__":
    run(SCRIPT.main)
