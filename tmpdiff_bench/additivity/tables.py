"""The tables of a report, and its findings in the words that their numbers support."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from tmpdiff_bench.additivity.measurements import FLOOR_MULTIPLE
from tmpdiff_bench.additivity.records import (
    DesignFreeCheck,
    Fidelity,
    Score,
    Sensitivity,
    Superposition,
)
from tmpdiff_bench.report.style import (
    MAIN_METRIC,
    MAIN_PREDICTORS,
    level_label,
    metric_label,
    predictor_label,
)
from tmpdiff_bench.report.tables import Table, enumerate_words, interval, number, percent, r_squared
from tmpdiff_bench.statistics import Interval

if TYPE_CHECKING:
    from tmpdiff_bench.additivity.result import AdditivityReport


def tables(report: AdditivityReport) -> tuple[Table, ...]:
    """Verdicts, hypotheses, design-free check, sensitivity and fidelity; a table without rows is
    left out.
    """
    one_level = {f"{name}*{report.steps}" for name in report.levels}  # what a reader compares
    whole = [record for record in report.fidelity if not record.mean or record.plan in one_level]
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


def _fidelity_row(record: Fidelity) -> dict[str, str]:
    return {
        "metric": metric_label(record.metric),
        "run": record.plan,
        "mean": record.not_available or interval(record.mean),
        "unit": record.unit,
    }


def _floor(ratio: float) -> str:
    return f"{ratio:.3g}"


_PREDICTORS = {
    "sum": "the sum of single-step errors",
    "root_sum_squares": "the root sum of squares",
    "gram": "the Gram matrix",
}


def main_scores(report: AdditivityReport) -> dict[tuple[str, str], Score]:
    """Scores of the main metric, which headlines and figures speak of, by level and predictor."""
    return {(s.level, s.predictor): s for s in report.scores if s.metric == MAIN_METRIC}


def headline(report: AdditivityReport) -> list[str]:
    """One line per main predictor: its verdict at every level."""
    lines = []
    for predictor in MAIN_PREDICTORS:
        verdicts: dict[str, list[str]] = {}
        for (_, name), score in main_scores(report).items():
            if name == predictor:
                verdicts.setdefault(score.verdict, []).append(level_label(score.level))
        told = [f"{verdict} at {enumerate_words(levels)}" for verdict, levels in verdicts.items()]
        if told:
            lines.append(_capital(f"{_PREDICTORS[predictor]}: {'; '.join(told)}."))
    return lines


def findings(report: AdditivityReport) -> dict[str, str]:
    """What was found, a paragraph per level."""
    hypotheses = {record.level: record for record in report.superposition}
    paragraphs = {}
    for level in dict.fromkeys(score.level for score in report.scores):
        every = main_scores(report)
        scores = [every[level, name] for name in MAIN_PREDICTORS if (level, name) in every]
        sentences = [_capital("; ".join(_score_words(score, report.margin) for score in scores))]
        sentences += _best_words(level, report.scores)
        if level in hypotheses:
            sentences += _hypothesis_words(hypotheses[level])
        sentences += _floor_words(level, scores)
        paragraphs[level] = " ".join(f"{sentence}." for sentence in sentences if sentence)
    return paragraphs


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _score_words(score: Score, margin: float) -> str:
    name, test = _PREDICTORS[score.predictor], score.test
    if test is None:
        return f"{name} is not defined ({score.reason})"
    ratio = test.ratio
    if score.verdict == "supported":
        said = f"predicts joint errors within ±{percent(margin)}, joint/predicted"
        said += f" being {interval(ratio)}"
    elif score.verdict == "undecided" and test.r2_plans <= 0:
        said = "explains none of the differences between plans "
        said += f"(R² over plans {r_squared(test.r2_plans)}), "
        said += f"joint/predicted being {interval(ratio)}"
    elif score.verdict == "undecided":
        said = f"is not certainly inside or outside the margin of ±{percent(margin)}, "
        said += f"joint/predicted being {interval(ratio)}"
    elif ratio.high < 1 / (1 + margin):
        factor = Interval(1 / ratio.estimate, 1 / ratio.high, 1 / ratio.low)
        said = f"overestimates joint errors by a factor of {interval(factor)}"
    elif ratio.low > 1 + margin:
        said = f"underestimates joint errors by a factor of {interval(ratio)}"
    else:
        said = (
            f"misses the range of joint errors: joint/predicted is {interval(test.ratio_small)}"
            f" for small predictions and {interval(test.ratio_large)} for large ones"
        )
    return f"{name} {said} ({score.verdict})"


def _best_words(level: str, scores: Iterable[Score]) -> list[str]:
    r2 = {
        score.predictor: score.r2_common
        for score in scores
        if score.level == level and score.metric == MAIN_METRIC and math.isfinite(score.r2_common)
    }
    if len(r2) < 2:
        return []
    best = max(r2, key=lambda predictor: r2[predictor])
    return [
        f"On the plans held out from all {len(r2)} predictors, {predictor_label(best)} has the "
        f"highest R² over plans, {r_squared(r2[best])}"
    ]


def _hypothesis_words(record: Superposition) -> list[str]:
    share = record.off_diagonal_share
    return [
        f"As vectors (H1, {record.residual_verdict}), the summed deviations leave a relative "
        f"residual of {interval(record.residual)} at a cosine of {interval(record.cosine)}",
        f"In mean square (H1m, {record.mean_square_verdict}), joint errors are "
        f"{interval(record.mean_square_ratio)} times what superposition gives",
        f"Off-diagonal terms (H2, {record.orthogonality_verdict}) are {interval(share, percent)} "
        "of the all-low mean square" + (", cancelling a part of it" if share.high < 0 else ""),
    ]


def _floor_words(level: str, scores: Sequence[Score]) -> list[str]:
    ratio = min((score.floor_ratio for score in scores), default=math.nan)
    if not ratio < FLOOR_MULTIPLE:
        return []
    return [
        f"The smallest single-step error at {level_label(level)} is {number(ratio)} times the "
        f"numerical floor: below {FLOOR_MULTIPLE} times it is not to be interpreted"
    ]
