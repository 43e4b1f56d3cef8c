"""Figures of single steps: what each costs, how their deviations relate, and what images show."""

from __future__ import annotations

import textwrap
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tmpdiff_bench.additivity.records import Floats, Sensitivity
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.report.style import (
    INK,
    MAIN_METRIC,
    WIDTH,
    Drawing,
    canvas,
    house_style,
    level_colours,
    metric_label,
)
from tmpdiff_bench.report.tables import percent

if TYPE_CHECKING:
    from tmpdiff_bench.additivity.result import AdditivityReport

if TYPE_CHECKING:
    from tmpdiff_bench.trajectory import Recording


def sensitivity(report: AdditivityReport) -> Drawing:
    """Mean error of a single low step against the step, one line per level."""
    records = [record for record in report.sensitivity if record.metric == MAIN_METRIC]
    colours = level_colours([record.level for record in records])
    with house_style():
        figure, [[ax]] = canvas(1, 1, 3.1)
        for record, marker in zip(records, cycle("os^DvP"), strict=False):
            steps, colour = np.arange(len(record.error)), colours[record.level]
            style: dict[str, Any] = {"color": colour, "marker": marker, "ms": 4.5}
            ax.fill_between(steps, record.low, record.high, color=colour, alpha=0.18, lw=0)
            ax.plot(steps, record.error, lw=1.3, label=record.level, **style)
            hollow = record.flagged
            ax.plot(steps[hollow], record.error[hollow], ls="", mfc="white", **style)
        _floor_line(ax, records)
        ax.set_yscale("log")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel("step at the low level (0 is the noisiest)")
        ax.set_ylabel(f"{metric_label(MAIN_METRIC)} of the final latent\n(latent units)")
        figure.legend(loc="outside upper center", ncols=4)
    peaks = ", ".join(
        f"{record.level} is most sensitive at step {int(record.error.argmax())}"
        for record in records
    )
    return Drawing(
        name="sensitivity",
        title="What one low step costs",
        caption=(
            "The higher a point, the more the final latent changes when only that step runs at the "
            f"low level; bands are {percent(1 - report.alpha)} intervals over prompts, and hollow "
            "points lie too near the numerical floor to be interpreted."
        ),
        alt=f"Line plot of single-step error against the step, one line per level: {peaks}.",
        figure=figure,
    )


def gram_matrices(report: AdditivityReport) -> Drawing:
    """The Gram matrix of each level, as correlations between the deviations of two steps."""
    shares = {record.level: record.off_diagonal_share for record in report.superposition}
    columns = min(len(report.grams), 4)
    rows = -(-len(report.grams) // columns)
    with house_style():
        height = 0.75 + 6.0 / max(columns, 3) * rows
        figure, axes = canvas(rows, columns, height, sharex=True, sharey=True)
        panels = [ax for row in axes for ax in row]
        for ax, gram in zip(panels, report.grams, strict=False):
            image = ax.imshow(_correlations(gram.matrix), cmap="RdBu_r", vmin=-1, vmax=1)
            ax.grid(False)
            ax.spines[:].set_visible(False)
            ax.tick_params(length=0)
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_major_locator(MaxNLocator(4, integer=True))
            title = f"$\\bf{{{gram.level}}}$"
            if gram.level in shares:
                title += f"\noff-diagonal {percent(shares[gram.level].estimate)}"
            ax.set_title(title)
        for ax in panels[len(report.grams) :]:
            ax.remove()
        for ax in panels[: len(report.grams)]:
            ax.set_xlabel("step")
        for row in axes:
            row[0].set_ylabel("step")
        bar = figure.colorbar(
            image,
            ax=panels[: len(report.grams)],
            location="bottom",
            aspect=45,
            fraction=0.05,
            ticks=(-1, -0.5, 0, 0.5, 1),
        )
        bar.set_label("correlation of terminal deviations")
        bar.outline.set_visible(False)
    words = ", ".join(f"{level} {percent(share.estimate)}" for level, share in shares.items())
    return Drawing(
        name="gram-matrices",
        title="How the steps' deviations relate",
        caption=(
            "Red pairs of steps push the final latent the same way, blue pairs cancel, white pairs "
            "are orthogonal (H2); the title says which share of the all-low mean square the "
            "off-diagonal pairs make up, were deviations to superpose."
        ),
        alt=f"Heat map of step-by-step correlations per level; off-diagonal share: {words}.",
        figure=figure,
    )


def _floor_line(ax: Axes, records: list[Sensitivity]) -> None:
    """The numerical floor, from each step's error and its ratio to the floor."""
    known = [(r.error / np.where(r.floor_ratio > 0, r.floor_ratio, np.inf)) for r in records]
    measured = np.concatenate([floor[floor > 0] for floor in known])
    if len(measured) == 0:
        return
    floor = float(np.median(measured))
    ax.axhline(floor, color=INK, lw=0.9, ls=(0, (4, 3)))
    ax.annotate(
        "numerical floor",
        (0.99, floor),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        fontsize=8,
    )


def _correlations(matrix: Floats) -> Floats:
    root = np.sqrt(np.diag(matrix))
    scale = np.outer(root, root)
    found: Floats = np.divide(matrix, scale, out=np.zeros_like(matrix), where=scale > 0)
    return found


_ROWS, _SINGLES = 4, 3
_GAP, _LINE = 0.06, 0.17  # inches: between images, and of a line of text


def image_strip(recording: Recording) -> Drawing | None:
    """Reference, some single runs and the all-low runs; None for a recording without pictures."""
    columns = _columns(recording)
    rows = _rows(recording)
    if not rows or "reference" not in columns.values():
        return None
    prompts = [textwrap.fill(recording.prompts[prompt_id], 86) for _, prompt_id in rows]
    side = (WIDTH + _GAP) / len(columns) - _GAP
    bands = [side + _GAP + _LINE * (1 + prompt.count("\n")) for prompt in prompts]
    height = sum(bands) + 1.9 * _LINE
    with house_style():
        figure = Figure(figsize=(WIDTH, height))
        for column, header in enumerate(columns):
            middle = (column * (side + _GAP) + side / 2) / WIDTH
            figure.text(middle, 1, header, ha="center", va="top", fontsize=8)
        bottom = height - 1.9 * _LINE
        for (row, _), prompt, band in zip(rows, prompts, bands, strict=True):
            bottom -= band
            figure.text(
                0,
                (bottom + side + 0.04) / height,
                prompt,
                va="bottom",
                fontsize=8.5,
                style="italic",
            )
            for column, key in enumerate(columns.values()):
                left = column * (side + _GAP) / WIDTH
                ax = figure.add_axes((left, bottom / height, side / WIDTH, side / height))
                ax.imshow(recording.pictures[key][row], interpolation="none")
                ax.axis("off")
    headers = ", ".join(header.replace("\n", " ") for header in columns)
    return Drawing(
        name="image-strip",
        title="What the errors look like",
        caption=(
            "Read each row from the left: the reference image of a prompt, the same with one step "
            "at the low level, and the same with every step at each level."
        ),
        alt=f"Generated images, columns {headers}; rows " + "; ".join(prompts) + ".",
        figure=figure,
    )


def _rows(recording: Recording) -> list[tuple[int, str]]:
    """The first pictured sample of each of the first prompts: (row in the pictures, prompt id)."""
    first: dict[str, int] = {}
    for row, sample in enumerate(recording.picture_rows):
        first.setdefault(recording.samples[sample][0], row)
    return [(row, prompt_id) for prompt_id, row in first.items()][:_ROWS]


def _columns(recording: Recording) -> dict[str, str]:
    """Header to key in `pictures`, of what was pictured."""
    reference, *low_levels = recording.levels
    singles = {
        f"step {step}\n{low_levels[-1]}": str(
            PrecisionPlan.single(reference, low_levels[-1], step, recording.steps)
        )
        for step in range(recording.steps)
    }
    singles = {header: key for header, key in singles.items() if key in recording.pictures}
    spread = np.linspace(0, len(singles) - 1, min(_SINGLES, len(singles))).round().astype(int)
    chosen = [list(singles.items())[index] for index in spread]
    all_low = {
        f"all steps\n{level}": str(PrecisionPlan.uniform(level, recording.steps))
        for level in low_levels
    }
    columns = {f"reference\n{reference}": "reference"} | dict(chosen) | all_low
    return {header: key for header, key in columns.items() if key in recording.pictures}
