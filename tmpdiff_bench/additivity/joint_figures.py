"""The figure of several models: how far joint errors are from what predictors say."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tmpdiff_bench.additivity.joint import JointReport
from tmpdiff_bench.additivity.records import AdditivityReport
from tmpdiff_bench.additivity.style import (
    GRID,
    MAIN_METRIC,
    MAIN_PREDICTORS,
    MUTED,
    Drawing,
    canvas,
    house_style,
    level_label,
    log_axis,
    metric_label,
    predictor_colour,
    predictor_label,
)
from tmpdiff_bench.additivity.wording import percent
from tmpdiff_bench.statistics import Interval

Ratios = dict[tuple[str, str], Interval]  # by level and predictor


def ratios(joint: JointReport) -> Drawing | None:
    """One panel per level, one line per model; None without a tested predictor."""
    found = {name: _ratios(report) for name, report in joint.reports.items()}
    levels = list(dict.fromkeys(level for one in found.values() for level, _ in one))
    if not levels:
        return None
    margin = next(iter(joint.reports.values())).margin
    with house_style():
        figure, [axes] = canvas(1, len(levels), 1.3 + 0.45 * len(found), sharex="all", sharey="all")
        for ax, level in zip(axes, levels, strict=True):
            ax.axvspan(1 / (1 + margin), 1 + margin, color=GRID, lw=0)
            ax.axvline(1, color=MUTED, lw=0.9)
            ax.set_title(level_label(level), fontweight="bold")
            for place, one in enumerate(found.values()):
                _intervals(ax, place, level, one)
            ax.grid(False)
        ax = axes[0]
        ax.set(xscale="log", yticks=range(len(found)), yticklabels=list(found))
        ax.set_ylim(len(found) - 0.5, -0.5)  # the first model on top
        ends = [end for one in found.values() for i in one.values() for end in (i.low, i.high)]
        limits = min([*ends, 1]) / 1.1, max([*ends, 1]) * 1.1
        ax.set_xlim(limits)
        log_axis(ax.xaxis, *limits, least=2)
        figure.supxlabel(f"joint / predicted {metric_label(MAIN_METRIC)}")
        handles = [
            *(
                Line2D([], [], marker="o", ms=4, color=predictor_colour(name), label=label)
                for name, label in zip(
                    MAIN_PREDICTORS, map(predictor_label, MAIN_PREDICTORS), strict=True
                )
            ),
            Patch(color=GRID, label=f"margin of ±{percent(margin)}"),
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return Drawing(
        name="ratios",
        title="Joint over predicted error, by model",
        caption=(
            "Geometric means over plans and samples with their 95 % intervals, not adjusted for "
            "many comparisons: right of 1 a predictor underestimates, left of it overestimates."
        ),
        alt="Joint over predicted error: "
        + "; ".join(
            f"{name}, {level}, {predictor_label(predictor)} {interval.estimate:.2f}"
            for name, one in found.items()
            for (level, predictor), interval in one.items()
        ),
        figure=figure,
    )


def _ratios(report: AdditivityReport) -> Ratios:
    """Of the main predictors and metric, where they were tested and are finite."""
    found = {
        (score.level, score.predictor): score.test.ratio
        for score in report.scores
        if score.metric == MAIN_METRIC and score.predictor in MAIN_PREDICTORS and score.test
    }
    return {
        key: interval
        for key, interval in found.items()
        if np.isfinite([interval.low, interval.estimate, interval.high]).all() and interval.low > 0
    }


def _intervals(ax: Axes, place: int, level: str, one: Ratios) -> None:
    for row, predictor in enumerate(MAIN_PREDICTORS):
        if (level, predictor) in one:
            interval = one[level, predictor]
            y = place + 0.22 * (row - 1)
            colour = predictor_colour(predictor)
            ax.plot([interval.low, interval.high], [y, y], color=colour, lw=1.4)
            ax.plot(interval.estimate, y, "o", color=colour, ms=4)
