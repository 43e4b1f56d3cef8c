"""The tables of a report: whole numbers for machines, one row of text per finding for readers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from tmpdiff_bench.additivity.records import (
    AdditivityReport,
    DesignFreeCheck,
    Fidelity,
    Score,
    Sensitivity,
    Superposition,
)
from tmpdiff_bench.additivity.style import metric_label, predictor_label
from tmpdiff_bench.additivity.wording import interval, percent, r_squared
from tmpdiff_bench.statistics import Interval

_TEX = {
    **{sign: f"\\{sign}" for sign in "#$%&_{}"},
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "²": "$^2$",
    "±": "$\\pm$",
}


@dataclass(frozen=True, eq=False)
class Table:
    """`frame` holds every column at full precision; `text` what a reader compares, as words."""

    name: str
    title: str
    frame: pd.DataFrame
    text: pd.DataFrame

    def to_csv(self) -> str:
        """The whole frame; reading it again gives the same numbers."""
        text: str = self.frame.to_csv(index=False, lineterminator="\n")
        return text

    def to_markdown(self) -> str:
        lines = [self.text.columns, ["---"] * self.text.shape[1], *self.text.to_numpy()]
        cells = ([cell.replace("|", "\\|") for cell in line] for line in lines)
        return "".join(f"| {' | '.join(line)} |\n" for line in cells)

    def to_latex(self) -> str:
        """A `tabular` for a paper that loads booktabs."""
        head, *body = (
            " & ".join(_escape_tex(cell) for cell in line) + r" \\"
            for line in [self.text.columns, *self.text.to_numpy()]
        )
        lines = [
            rf"% {self.title}; needs \usepackage{{booktabs}}",
            rf"\begin{{tabular}}{{{'l' * self.text.shape[1]}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
        ]
        return "\n".join(lines) + "\n"


def tables(report: AdditivityReport) -> tuple[Table, ...]:
    """Verdicts, hypotheses, design-free check, sensitivity and fidelity; a table without rows is
    left out.
    """
    whole = [record for record in report.fidelity if _is_whole(record, report)]
    steps = [(record, step) for record in report.sensitivity for step in range(report.steps)]
    found = (
        Table(
            "verdicts",
            "Verdicts",
            report.scores_frame(),
            _text(map(_verdict_row, report.scores)),
        ),
        Table(
            "hypotheses",
            "Superposition of terminal deviations",
            report.superposition_frame(),
            _text(map(_hypothesis_row, report.superposition)),
        ),
        Table(
            "design-free",
            "Design-free check",
            report.design_free_frame(),
            _text(map(_design_free_row, report.design_free)),
        ),
        Table(
            "sensitivity",
            "Single-step errors",
            report.sensitivity_frame(),
            _text(_sensitivity_row(record, step) for record, step in steps),
        ),
        Table(
            "fidelity",
            "Metrics of whole runs",
            report.fidelity_frame(),
            _text(map(_fidelity_row, whole)),
        ),
    )
    return tuple(table for table in found if len(table.frame))


def _text(rows: Iterable[dict[str, str]]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), dtype=object)


def _verdict_row(score: Score) -> dict[str, str]:
    test = score.test
    prompts, plans = test.clusters if test else (0, score.held_out_plans)
    fitted = (f"{name} {interval(value)}" for name, value in score.parameters.items())
    return {
        "level": score.level,
        "metric": metric_label(score.metric),
        "predictor": predictor_label(score.predictor),
        "verdict": score.verdict,
        "R² over plans": r_squared(test.r2_plans if test else math.nan),
        "R² over samples": r_squared(test.r2_identity if test else math.nan),
        "common R²": r_squared(score.r2_common),
        "slope": interval(test.slope if test else None),
        "joint/predicted": interval(test.ratio if test else None),
        "median relative error": percent(test.median_relative_error if test else math.nan),
        "rank correlation": interval(score.rank_within),
        "prompts x plans": f"{prompts} x {plans}",
        "floor ratio": _floor(score.floor_ratio),
        "note": score.reason or ", ".join(fitted),
    }


def _hypothesis_row(record: Superposition) -> dict[str, str]:
    return {
        "level": record.level,
        "H1 residual": interval(record.residual),
        "H1 cosine": interval(record.cosine),
        "H1": record.residual_verdict,
        "H1m mean-square ratio": interval(record.mean_square_ratio),
        "H1m": record.mean_square_verdict,
        "H2 off-diagonal share": interval(record.off_diagonal_share, percent),
        "H2": record.orthogonality_verdict,
        "systematic share": interval(record.systematic_share, percent),
        "context cosine": interval(record.context_cosine),
        "floor ratio": _floor(record.floor_ratio),
    }


def _design_free_row(record: DesignFreeCheck) -> dict[str, str]:
    return {
        "level": record.level,
        "metric": metric_label(record.metric),
        "removed/alone": interval(record.ratio),
        "verdict": record.verdict,
        "prompts": str(record.clusters),
        "floor ratio": _floor(record.floor_ratio),
    }


def _sensitivity_row(record: Sensitivity, step: int) -> dict[str, str]:
    error, low, high = (float(values[step]) for values in (record.error, record.low, record.high))
    return {
        "level": record.level,
        "metric": metric_label(record.metric),
        "step": str(step),
        "error": interval(Interval(error, low, high)),
        "floor ratio": _floor(float(record.floor_ratio[step])),
        "flagged": "yes" if record.flagged[step] else "no",
    }


def _is_whole(record: Fidelity, report: AdditivityReport) -> bool:
    """Whether a run has all steps at one level, which is what a reader compares."""
    return record.mean is None or record.plan in {f"{n}*{report.steps}" for n in report.levels}


def _fidelity_row(record: Fidelity) -> dict[str, str]:
    return {
        "metric": metric_label(record.metric),
        "run": record.plan,
        "mean": record.not_available or interval(record.mean),
        "unit": record.unit,
    }


def _floor(ratio: float) -> str:
    return f"{ratio:.3g}"


def _escape_tex(text: str) -> str:
    return re.sub("|".join(map(re.escape, _TEX)), lambda found: _TEX[found[0]], text)
