"""The report folder: numbers, tables, figures, and one page that can be mailed."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tmpdiff_bench.additivity.figures import predicted_against_measured, residuals
from tmpdiff_bench.additivity.measurements import FLOOR_MULTIPLE
from tmpdiff_bench.additivity.step_figures import gram_matrices, image_strip, sensitivity
from tmpdiff_bench.additivity.tables import findings, headline, tables
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.report.pages import figure_files, inlined, render, table_files, write_files
from tmpdiff_bench.report.style import MAIN_METRIC, Drawing, level_label, metric_label
from tmpdiff_bench.report.tables import Table, aligned, number, percent, r_squared
from tmpdiff_bench.trajectory.recording import call_words

if TYPE_CHECKING:
    from tmpdiff_bench.additivity.result import AdditivityReport

SCHEMA = "tmpdiff_bench.additivity.report/1"
_OURS = {"summary.json", "report.html", "tables", "figures", "recording"}
_SCREEN = 100  # columns


def write_report(report: AdditivityReport, out: Path) -> Path:
    """Write a report into the folder `out`, and return its page.

    `summary.json` is everything as finite numbers, `tables/` the tables (csv: all columns; md, tex:
    what a reader compares), `figures/` the figures (svg, png), `report.html` all of it in one file.
    The same report gives the same bytes. A report that is there is replaced, file by file; raises
    `UsageError` where `out` holds anything else (`check_folder`).
    """
    check_folder(out)
    drawings = [
        predicted_against_measured(report),
        sensitivity(report),
        gram_matrices(report),
        residuals(report),
        image_strip(report.recording) if report.recording else None,
    ]
    files = _files(report, tables(report), [drawing for drawing in drawings if drawing])
    write_files(out, files)
    return out / "report.html"


def check_folder(out: Path) -> None:
    """Raise `UsageError` unless `out` is new, empty, or what an earlier report left there."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file: name a folder for the report")
    names = {path.name for path in out.glob("[!.]*")}
    foreign = sorted(names - _OURS)
    if not foreign and not names <= {"recording"} and not is_summary(out / "summary.json"):
        foreign = sorted(names)
    if foreign:
        raise foreign_folder(out, foreign[0])


def foreign_folder(out: Path, name: str) -> UsageError:
    """The error for a folder that holds something else."""
    return UsageError(f"{out} holds {name!r}, which no report of ours wrote: name another folder")


def summary_text(report: AdditivityReport, page: Path) -> str:
    """The report on one screen: at most 24 lines of 100 columns, in ASCII."""
    columns = {level: _summary_column(report, level) for level in report.levels[1:]}
    columns |= {
        score.level: _summary_column(report, score.level)
        for score in report.scores
        if score.level not in columns
    }
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    cells = [text for column in columns.values() for text in column.values()]
    room = _SCREEN - max(map(len, names), default=0)
    shown = list(columns)[: room // (2 + max(map(len, cells), default=0))]
    rows = [("", *shown), *((n, *(columns[level].get(n, "") for level in shown)) for n in names)]
    manifest = report.manifest
    lines = [
        f"{manifest['title']}: {report.steps} steps, {report.prompts} prompts, "
        f"{report.samples} samples, reference {report.levels[0]}",
        f"{metric_label(MAIN_METRIC)} of joint plans, predicted from single steps: "
        "R2 over plans, and verdict",
        "",
        *aligned(rows, right=False).splitlines(),
        "",
        f"{_nfe_words(manifest)}",
    ]
    if hidden := list(columns)[len(shown) :]:
        lines.append(f"More levels in the report: {', '.join(hidden)}")
    if report.warnings:
        lines.append(f"Warnings: {len(report.warnings)}, explained in the report")
    fitted = [textwrap.shorten(line, _SCREEN) if len(line) > _SCREEN else line for line in lines]
    return "\n".join([*(line.rstrip() for line in fitted), f"Report: {page}"])


def _summary_column(report: AdditivityReport, level: str) -> dict[str, str]:
    column = {
        score.predictor: f"{r_squared(score.test.r2_plans)} {score.verdict}"
        if score.test
        else score.verdict
        for score in report.scores
        if score.level == level and score.metric == MAIN_METRIC
    }
    for record in report.superposition:
        if record.level == level:
            share = percent(record.off_diagonal_share.estimate)
            ratio = number(record.mean_square_ratio.estimate)
            column |= {
                "H1 residual": f"{number(record.residual.estimate)} {record.residual_verdict}",
                "H1m mean squares": f"{ratio} {record.mean_square_verdict}",
                "H2 off-diagonal": f"{share} {record.orthogonality_verdict}",
            }
    return column


def _nfe_words(manifest: Mapping[str, Any]) -> str:
    spent, plain = manifest["nfe"]["spent"], manifest["nfe"]["plain_loop"]
    computed = manifest["nfe"].get("computed", spent)
    words = f"{spent:,} NFE" if computed == spent else f"{spent:,} NFE, {computed:,} of them"
    words += f" in {manifest['seconds']:.0f} s"
    return f"{words}; one pipeline call per plan would have spent {plain:,} ({plain / spent:.1f}x)"


def _files(
    report: AdditivityReport, written: tuple[Table, ...], drawings: list[Drawing]
) -> dict[str, bytes]:
    """Every file of the report; the summary, which marks the folder as ours, comes first."""
    summary = {"schema": SCHEMA, **json.loads(report.to_json())}
    files = {"summary.json": json.dumps(summary, allow_nan=False).encode()}
    files |= table_files(written)
    figures = figure_files(drawings)
    files["report.html"] = _page(report, written, drawings, inlined(figures)).encode()
    return files | figures


def _page(
    report: AdditivityReport,
    written: tuple[Table, ...],
    drawings: list[Drawing],
    images: Mapping[str, str],
) -> str:
    return render(
        Path(__file__).parent,
        "report.html.jinja",
        report=report,
        facts=_facts(report),
        headline=headline(report),
        findings=findings(report),
        tables={table.name: table for table in written},
        main_metric=metric_label(MAIN_METRIC),
        level_label=level_label,
        floor_multiple=FLOOR_MULTIPLE,
        drawings=drawings,
        images=images,
        nfe=_nfe_words(report.manifest),
    )


def _facts(report: AdditivityReport) -> dict[str, str]:
    """What ran, for the head of the page."""
    manifest = report.manifest
    workload, environment = manifest["workload"], manifest["environment"]
    packages = ("tmpdiff_bench", "python", "torch", "diffusers", "transformers")
    commit = environment["git_commit"] or "not run from a git checkout"
    return {
        "model": manifest["title"],
        "weights": f"{workload['weights']}, digest {workload['weights_digest']}",
        "levels": f"{', '.join(report.levels[1:])}; reference {report.levels[0]}",
        "steps": str(report.steps),
        "call": call_words(workload["arguments"]),
        "sampler": workload["sampler"]["class"],
        "images": " x ".join(map(str, workload["image_size"])) + f" px, {workload['dtype']}",
        "samples": f"{report.samples}: {report.prompts} prompts x {len(workload['seeds'])} seeds",
        "device": environment["device"],
        "versions": ", ".join(f"{name} {environment[name]}" for name in packages),
        "git commit": commit + (" with uncommitted changes" if environment["git_dirty"] else ""),
        "cost": _nfe_words(manifest),
    }


def is_summary(path: Path, schema: str = SCHEMA) -> bool:
    """Whether a file is the summary of a report of ours."""
    try:
        return bool(json.loads(path.read_text(encoding="utf-8"))["schema"] == schema)
    except (OSError, ValueError, KeyError, TypeError):
        return False
