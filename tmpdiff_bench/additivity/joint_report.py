"""The folder of several models: one joint table and page, and a report of each beside them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from tmpdiff_bench.additivity.joint import JointReport
from tmpdiff_bench.additivity.joint_figures import ratios
from tmpdiff_bench.additivity.measurements import MIXED
from tmpdiff_bench.additivity.records import AdditivityReport, Score
from tmpdiff_bench.additivity.report import (
    check_folder,
    figure_files,
    foreign_folder,
    inlined,
    is_summary,
    render,
    table_files,
)
from tmpdiff_bench.additivity.style import (
    MAIN_METRIC,
    MAIN_PREDICTORS,
    level_label,
    metric_label,
    predictor_label,
)
from tmpdiff_bench.additivity.tables import Table, tables
from tmpdiff_bench.additivity.wording import percent, r_squared
from tmpdiff_bench.errors import UsageError

SCHEMA = "tmpdiff_bench.additivity.joint/1"
_OURS = {"summary.json", "report.html", "tables", "figures"}
_LINES, _COLUMNS = 24, 100  # of a screen


def write_joint(joint: JointReport, out: Path) -> Path:
    """Write `summary.json`, `tables/`, `figures/` and `report.html` of several models into `out`,
    beside the folders of their own reports; returns the page. The same reports give the same bytes.

    Raises `UsageError` where `out` holds anything else.
    """
    from tmpdiff_bench.store import write_atomically

    check_joint_folder(out, joint.reports)
    written = _tables(joint)
    files = {"summary.json": json.dumps(_summary(joint), allow_nan=False, indent=1).encode()}
    drawings = [drawing for drawing in (ratios(joint),) if drawing]
    figures = figure_files(drawings)
    files |= table_files(written) | figures
    files["report.html"] = render(
        "joint.html.jinja",
        joint=joint,
        tables={table.name: table for table in written},
        drawings=drawings,
        images=inlined(figures),
        main_metric=metric_label(MAIN_METRIC),
    ).encode()
    for name, content in files.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
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
    widths = [max(len(line[i]) for line in lines) + 2 for i in range(len(lines[0]))]
    body = ["".join(t.ljust(w) for t, w in zip(line, widths, strict=True)) for line in lines]
    return "\n".join([*head, *(line[:_COLUMNS].rstrip() for line in body), *foot])


def _screen_rows(name: str, report: AdditivityReport) -> list[tuple[str, ...]]:
    scores = {
        (score.level, score.predictor): score
        for score in report.scores
        if score.metric == MAIN_METRIC
    }
    levels = dict.fromkeys(level for level, _ in scores)
    return [
        (name, level, *(_cell(scores.get((level, predictor))) for predictor in MAIN_PREDICTORS))
        for level in levels
    ]


def _cell(score: Score | None) -> str:
    if score is None:
        return ""
    return f"{r_squared(score.test.r2_plans)} {score.verdict}" if score.test else score.verdict


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
        scores = {
            (score.level, score.predictor): score
            for score in report.scores
            if score.metric == MAIN_METRIC
        }
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
        "scores": [_finite(row) for row in rows],
    }


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not abs(value) < float("inf") else value
        for key, value in row.items()
    }
