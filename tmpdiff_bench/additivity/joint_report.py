"""The folder of several models: one joint table and page, and a report of each beside them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tmpdiff_bench.additivity.analysis import JointReport
from tmpdiff_bench.additivity.report import check_folder, foreign_folder, is_summary
from tmpdiff_bench.additivity.result import AdditivityReport
from tmpdiff_bench.additivity.tables import main_scores, tables
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.report.pages import figure_files, inlined, render, table_files, write_files
from tmpdiff_bench.report.style import (
    GRID,
    MAIN_METRIC,
    MAIN_PREDICTORS,
    MIXED,
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
from tmpdiff_bench.report.tables import Table, aligned, finite, percent, r_squared
from tmpdiff_bench.statistics import Interval

SCHEMA = "tmpdiff_bench.additivity.analysis/1"
_OURS = {"summary.json", "report.html", "tables", "figures"}
_LINES, _COLUMNS = 24, 100  # of a screen


def write_joint(joint: JointReport, out: Path) -> Path:
    """Write `summary.json`, `tables/`, `figures/` and `report.html` of several models into `out`,
    beside the folders of their own reports; returns the page. The same reports give the same bytes.

    Raises `UsageError` where `out` holds anything else.
    """
    check_joint_folder(out, joint.reports)
    written = _tables(joint)
    files = {"summary.json": json.dumps(_summary(joint), allow_nan=False).encode()}
    drawings = [drawing for drawing in (ratios(joint),) if drawing]
    figures = figure_files(drawings)
    files |= table_files(written) | figures
    files["report.html"] = render(
        Path(__file__).parent,
        "joint.html.jinja",
        joint=joint,
        tables={table.name: table for table in written},
        drawings=drawings,
        images=inlined(figures),
        main_metric=metric_label(MAIN_METRIC),
    ).encode()
    write_files(out, files)
    return out / "report.html"


def check_joint_folder(out: Path, names: Iterable[str]) -> None:
    """Raise `UsageError` unless `out` is new, empty, or what earlier joint reports left there."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file: name a folder for the report")
    there = {path.name for path in out.glob("[!.]*")}
    if (out / "summary.json").exists() and not is_summary(out / "summary.json", SCHEMA):
        raise foreign_folder(out, "summary.json")
    folders = {path.name for path in out.glob("[!.]*") if path.is_dir()} - _OURS
    if foreign := sorted(there - _OURS - folders):
        raise foreign_folder(out, foreign[0])
    for name in sorted({*names, *folders}):
        check_folder(out / name)


def joint_text(joint: JointReport, page: Path) -> str:
    """The joint table on one screen, in ASCII: R2 over plans and verdict of the main predictors.

    Rows are models and levels; where they are too many for 24 lines, the mixed plans go first.
    """
    rows = [row for name in joint.reports for row in _screen_rows(name, joint.reports[name])]
    head = [
        f"{metric_label(MAIN_METRIC)} of joint plans, predicted from single steps: "
        "R2 over plans, and verdict,",
        "adjusted (Holm) over all metrics of all models, for each predictor and level",
        "",
    ]
    foot = [f"{name}: left out, {reason}" for name, reason in joint.left_out.items()]
    foot.append(f"Report: {page}")
    room = _LINES - len(head) - len(foot) - 1
    if len(rows) > room:
        rows = [row for row in rows if row[1] != MIXED]
    hidden = len(rows) - room
    if hidden > 0:
        foot.insert(0, f"{hidden + 1} more rows in the report")
        rows = rows[: room - 1]
    lines = [("model", "level", *map(predictor_label, MAIN_PREDICTORS)), *rows]
    body = aligned(lines, right=False).splitlines()
    return "\n".join([*head, *(line[:_COLUMNS].rstrip() for line in body), *foot])


def _screen_rows(name: str, report: AdditivityReport) -> list[tuple[str, ...]]:
    scores = main_scores(report)
    words = {
        place: f"{r_squared(s.test.r2_plans)} {s.verdict}" if s.test else s.verdict
        for place, s in scores.items()
    }
    levels = dict.fromkeys(level for level, _ in scores)
    return [
        (name, level, *(words.get((level, predictor), "") for predictor in MAIN_PREDICTORS))
        for level in levels
    ]


def _tables(joint: JointReport) -> tuple[Table, ...]:
    """Verdicts and hypotheses of all models, whose own tables they are stacked from."""
    texts: dict[str, list[pd.DataFrame]] = {"verdicts": [], "hypotheses": []}
    for name, report in joint.reports.items():
        for table in tables(report):
            if table.name in texts:
                text = table.text.copy()
                text.insert(0, "model", name)
                texts[table.name].append(text)
    titles = {
        "verdicts": ("Verdicts, adjusted over all models", joint.scores_frame()),
        "hypotheses": ("Superposition of terminal deviations", joint.superposition_frame()),
    }
    return (
        _overview(joint),
        *(
            Table(name, title, frame, pd.concat(texts[name], ignore_index=True))
            for name, (title, frame) in titles.items()
            if texts[name]
        ),
    )


def _overview(joint: JointReport) -> Table:
    """One row per model and level: the main metric's verdicts, and H2's share."""
    text, numbers = [], []
    for name, report in joint.reports.items():
        shares = {record.level: record.off_diagonal_share for record in report.superposition}
        scores = main_scores(report)
        for level in dict.fromkeys(level for level, _ in scores):
            row = {"model": report.manifest["title"], "level": level_label(level)}
            number: dict[str, Any] = {"model": name, "level": level}
            for predictor in MAIN_PREDICTORS:
                score = scores.get((level, predictor))
                r2 = score.test.r2_plans if score and score.test else math.nan
                verdict = score.verdict if score else "not defined"
                label = predictor_label(predictor)
                row |= {label: verdict, f"R² of {label}": r_squared(r2)}
                number |= {f"{predictor}_verdict": verdict, f"{predictor}_r2_plans": r2}
            share = shares.get(level)
            row["off-diagonal share"] = percent(share.estimate) if share else "n/a"
            number["off_diagonal_share"] = share.estimate if share else math.nan
            text.append(row)
            numbers.append(number)
    return Table("models", "All models", pd.DataFrame(numbers), pd.DataFrame(text, dtype=object))


def _summary(joint: JointReport) -> dict[str, Any]:
    """The joint verdicts as finite numbers; each model's own report has all else."""
    names = ("level", "metric", "predictor", "verdict", "r2_plans", "ratio")
    p_values = ("equivalence_p_holm", "outside_p_holm", "wald_p_holm")
    frame = joint.scores_frame()[["model", *names, *p_values, "reason"]]
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return {
        "schema": SCHEMA,
        "rule": joint.rule,
        "left_out": dict(joint.left_out),
        "models": {
            name: {
                "title": report.manifest["title"],
                "weights_digest": report.manifest["workload"]["weights_digest"],
                "steps": report.steps,
                "samples": report.samples,
                "nfe": report.manifest["nfe"],
                "seconds": report.manifest["seconds"],
            }
            for name, report in joint.reports.items()
        },
        "scores": [finite(row) for row in rows],
    }


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
        place: score.test.ratio
        for place, score in main_scores(report).items()
        if place[1] in MAIN_PREDICTORS and score.test
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
