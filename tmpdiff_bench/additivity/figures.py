"""Figures of joint plans: what single steps predict, against what was measured."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from tmpdiff_bench.additivity.records import Floats, Predictions, Score
from tmpdiff_bench.additivity.tables import main_scores
from tmpdiff_bench.report.style import (
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
from tmpdiff_bench.report.tables import percent, r_squared

if TYPE_CHECKING:
    from tmpdiff_bench.additivity.result import AdditivityReport

Found = dict[tuple[str, str], Predictions]


def predicted_against_measured(report: AdditivityReport) -> Drawing | None:
    """One panel per main predictor and level, each point a plan's mean; None without plans."""
    found = _main_predictions(report)
    levels = _levels(found)
    if not levels:
        return None
    texts = {
        place: _score_text(score)
        for place, score in main_scores(report).items()
        if place[1] in MAIN_PREDICTORS
    }
    with house_style():
        rows = len(MAIN_PREDICTORS)
        text_size = 8 if len(levels) < 4 else 7
        height = 1.05 + (4.4 / max(len(levels), 3) + 0.02) * rows
        figure, axes = canvas(rows, len(levels), height, sharex="col", sharey="col")
        for column, level in enumerate(levels):
            limits = _limits([value for key, value in found.items() if key[0] == level])
            for row, predictor in enumerate(MAIN_PREDICTORS):
                ax = axes[row][column]
                _margin_band(ax, limits, report.margin)
                if (level, predictor) in found:
                    _plan_points(ax, found[level, predictor])
                ax.set(xscale="log", yscale="log", xlim=limits, ylim=limits, box_aspect=1)
                log_axis(ax.xaxis, *limits, least=2)
                log_axis(ax.yaxis, *limits, least=2)
                told = texts.get((level, predictor), "not defined")
                ax.text(0.5, 1.04, told, transform=ax.transAxes, ha="center", fontsize=text_size)
                ax.grid(False)
                if len(levels) > 3:
                    ax.tick_params(axis="x", labelrotation=40)  # labels are wider than panels allow
                if row == 0:
                    ax.set_title(level_label(level), fontweight="bold", pad=3.3 * text_size)
                if column == 0:
                    colour = predictor_colour(predictor)
                    label = textwrap.fill(predictor_label(predictor), 9)
                    ax.set_ylabel(label, color=colour, fontweight="bold")
        figure.supxlabel(f"predicted {metric_label(MAIN_METRIC, unit=True)}")
        figure.supylabel(f"measured {metric_label(MAIN_METRIC, unit=True)}")
        figure.legend(handles=_plan_keys(report, found), loc="outside upper center", ncols=2)
    return Drawing(
        name="predicted-against-measured",
        title="Predicted against measured joint errors",
        caption=(
            "Each point is a plan's geometric mean over samples: on the line the predictor is "
            "right, below it overestimates, above it underestimates; R² is about the line, in logs."
        ),
        alt="Scatter plots of predicted against measured error, one per predictor and level. "
        + "; ".join(
            f"{predictor_label(predictor)} at {level}: {text.replace(chr(10), ', ')}"
            for (level, predictor), text in texts.items()
        ),
        figure=figure,
    )


def residuals(report: AdditivityReport) -> Drawing | None:
    """Joint over predicted error against the number of low steps; None without plans."""
    found = _main_predictions(report)
    levels = _levels(found)
    if not levels:
        return None
    with house_style():
        figure, [axes] = canvas(1, len(levels), 2.9, sharex=True, sharey=True)
        for ax, level in zip(axes, levels, strict=True):
            ax.axhspan(1 / (1 + report.margin), 1 + report.margin, color=GRID, lw=0)
            ax.axhline(1, color=MUTED, lw=0.9)
            for (place, _), record in found.items():
                if place == level:
                    _ratio_points(ax, record)
            ax.set_title(level_label(level), fontweight="bold")
            ax.set_yscale("log")
            ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        log_axis(axes[0].yaxis, *axes[0].get_ylim(), least=3)
        axes[0].set_ylabel("joint / predicted error")
        figure.supxlabel("low steps in the plan")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return Drawing(
        name="residuals",
        title="Where predictions fail",
        caption=(
            "A good predictor stays at 1 (grey band: the margin) however many steps are low, and "
            "below 1 it overestimates; points are plans (geometric means over samples), lines "
            "their geometric means."
        ),
        alt="Ratio of joint to predicted error against the number of low steps: "
        f"{_trend_words(found)}.",
        figure=figure,
    )


def _main_predictions(report: AdditivityReport) -> Found:
    return {
        (record.level, record.predictor): record
        for record in report.predictions
        if record.metric == MAIN_METRIC and record.predictor in MAIN_PREDICTORS
    }


def _levels(found: Found) -> list[str]:
    return list(dict.fromkeys(level for level, _ in found))


def _score_text(score: Score) -> str:
    if score.test is None:
        return "not defined"
    return f"R² {r_squared(score.test.r2_plans)}\n{score.verdict}"


def _limits(records: list[Predictions]) -> tuple[float, float]:
    """One range for both axes, so that the identity line is the diagonal."""
    means = np.concatenate(
        [_means(values) for record in records for values in (record.predicted, record.joint)]
    )
    means = means[means > 0]
    return float(means.min()) / 1.25, float(means.max()) * 1.25


def _margin_band(ax: Axes, limits: tuple[float, float], margin: float) -> None:
    line = np.array(limits)
    ax.fill_between(line, line / (1 + margin), line * (1 + margin), color=GRID, lw=0)
    ax.plot(line, line, color=MUTED, lw=0.9)


def _plan_style(colour: str, *, held_out: bool) -> dict[str, Any]:
    face = colour if held_out else "white"
    return {"color": colour, "mfc": face, "marker": "o", "ms": 3.6, "mew": 0.8, "ls": ""}


def _means(values: Floats) -> Floats:
    """Geometric means over samples, which R2 over plans compares; 0 where a value is 0."""
    with np.errstate(divide="ignore"):
        means: Floats = np.exp(np.log(values).mean(axis=1))
    return means


def _plan_points(ax: Axes, record: Predictions) -> None:
    colour = predictor_colour(record.predictor)
    predicted, joint = _means(record.predicted), _means(record.joint)
    for held_out in (False, True):
        rows = record.held_out == held_out
        ax.plot(predicted[rows], joint[rows], **_plan_style(colour, held_out=held_out))


def _plan_keys(report: AdditivityReport, found: Found) -> list[Artist]:
    """What the marks mean; plans need a key only where predictors were fitted to some of them."""
    keys: list[Artist] = [
        Line2D([], [], color=MUTED, lw=0.9, label="measured = predicted"),
        Patch(color=GRID, label=f"margin of ±{percent(report.margin)}"),
    ]
    if not all(record.held_out.all() for record in found.values()):
        keys += [
            Line2D([], [], label="held-out plan", **_plan_style(MUTED, held_out=True)),
            Line2D([], [], label="other plan", **_plan_style(MUTED, held_out=False)),
        ]
    return keys


def _ratios(record: Predictions) -> Floats:
    """Joint over predicted error of each plan, geometric mean over samples."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(record.joint / record.predicted)
    ratios: Floats = np.exp(np.where(np.isfinite(logs), logs, np.nan).mean(axis=1))
    return ratios


def _trend(record: Predictions) -> tuple[NDArray[np.int64], Floats]:
    """The numbers of low steps, and the geometric mean ratio of the plans that have each."""
    logs = np.log(_ratios(record))
    counts = np.unique(record.low_steps)
    return counts, np.exp([logs[record.low_steps == count].mean() for count in counts])


def _ratio_points(ax: Axes, record: Predictions) -> None:
    colour = predictor_colour(record.predictor)
    ax.plot(record.low_steps, _ratios(record), "o", color=colour, ms=3.5, alpha=0.4, mew=0)
    ax.plot(*_trend(record), color=colour, lw=1.4, label=predictor_label(record.predictor))


def _trend_words(found: Found) -> str:
    words = []
    for (level, predictor), record in found.items():
        counts, trend = _trend(record)
        words.append(
            f"{predictor_label(predictor)} at {level} goes from {trend[0]:.2f} with {counts[0]} "
            f"to {trend[-1]:.2f} with {counts[-1]}"
        )
    return "; ".join(words)
