"""Figures: error against speedup, one picture per model."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from analysis.base import FigureFile, Made, Reports, Script
from analysis.suite_data import ERROR, INPUTS, allocator_label, mark, results
from tmpdiff_bench.commands import run
from tmpdiff_bench.report.style import Drawing, canvas, house_style, log_axis
from tmpdiff_bench.suite.v1 import MODELS


def draw(ax: Axes, rows: pd.DataFrame) -> None:
    """A line per allocator over the speedups that its plans reach."""
    for name, points in rows.groupby("allocator", sort=False):
        line = points.groupby("target_speedup")[["speedup", "value"]].mean()
        style = mark(str(name)) | {"ls": "-", "lw": 0.8, "ms": 4.5, "alpha": 0.9}
        ax.plot(line["speedup"], line["value"], label=allocator_label(str(name)), **style)
    ax.set(yscale="log")
    log_axis(ax.yaxis, *ax.get_ylim(), least=3)


def figure(model: str, title: str, errors: pd.DataFrame) -> Drawing:
    """Panels: steps by level sets."""
    steps = sorted(errors["steps"].unique())
    levels = list(dict.fromkeys(errors["levels"]))
    with house_style():
        drawn, axes = canvas(len(steps), len(levels), 2.5 * len(steps) + 1)
        entries: dict[str, Artist] = {}
        for line, count in zip(axes, steps, strict=True):
            for ax, names in zip(line, levels, strict=True):
                draw(ax, errors[(errors["steps"] == count) & (errors["levels"] == names)])
                ax.set_title(f"{count} steps, {names}")
                handles, labels = ax.get_legend_handles_labels()
                entries.update(zip(labels, handles, strict=True))
        drawn.supxlabel("speedup over the reference (roofline)")
        drawn.supylabel("latent RMSE")
        drawn.legend(list(entries.values()), list(entries), loc="outside upper center", ncols=4)
    return Drawing(
        f"pareto-{model}",
        f"Error against speedup: {title}",
        "Mean latent RMSE on evaluation prompts against the speedup that the plans have by the "
        "roofline of the true-size model; a mark per target speedup. Down and right is better.",
        f"Curves of error against speedup for {len(entries)} allocators on {title}, in "
        f"{len(steps) * len(levels)} panels.",
        drawn,
    )


def make(reports: Reports) -> Iterator[Made]:
    """A figure per model that ran."""
    found = results(reports.folder)
    errors = found.scores[found.scores["metric"] == ERROR]
    for model, rows in errors.groupby("model", sort=False):
        yield figure(str(model), found.manifest["titles"][model], rows)


SCRIPT = Script(
    "pareto",
    make,
    inputs=INPUTS,
    outputs=tuple(FigureFile(f"pareto-{model}", optional=True) for model in MODELS),
)

if __name__ == "__main__":
    run(SCRIPT.main)
