"""Numbers as text, and findings in the words that the numbers support."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

from tmpdiff_bench.additivity.measurements import FLOOR_MULTIPLE
from tmpdiff_bench.additivity.records import AdditivityReport, Score, Superposition
from tmpdiff_bench.additivity.style import (
    MAIN_METRIC,
    MAIN_PREDICTORS,
    level_label,
    predictor_label,
)
from tmpdiff_bench.statistics import Interval

_PREDICTORS = {
    "sum": "the sum of single-step errors",
    "root_sum_squares": "the root sum of squares",
    "gram": "the Gram matrix",
}


def number(value: float, scale: float | None = None) -> str:
    """Two decimals, or more where two significant digits of `scale` (or of the value) take them."""
    if math.isnan(value):
        return "n/a"
    size = abs(value if scale is None else scale)
    decimals = 2 if size == 0 or size >= 0.1 else 1 - math.floor(math.log10(size))
    return f"{round(value, decimals) + 0.0:.{decimals}f}"  # + 0.0: no "-0.00"


def r_squared(value: float) -> str:
    """Three decimals: the good predictors differ in the third."""
    return "n/a" if math.isnan(value) else f"{value:.3f}"


def percent(value: float) -> str:
    """A share in whole percent."""
    return "n/a" if math.isnan(value) else f"{100 * value:.0f} %"


def interval(value: Interval | None, write: Callable[[float], str] | None = None) -> str:
    """Format as `estimate [low, high]`, all three alike."""
    if value is None or math.isnan(value.estimate):
        return "n/a"
    if math.isnan(value.low):
        return (write or number)(value.estimate)
    if write is None:
        scale = max(abs(value.low), abs(value.high))
        estimate, low, high = (number(end, scale) for end in dataclasses.astuple(value))
    else:
        estimate, low, high = (write(end) for end in dataclasses.astuple(value))
    return f"{estimate} [{low}, {high}]"


def enumerate_words(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def main_scores(report: AdditivityReport) -> list[Score]:
    """The scores that headlines and figures speak of: main metric, main predictors."""
    return [
        score
        for score in report.scores
        if score.metric == MAIN_METRIC and score.predictor in MAIN_PREDICTORS
    ]


def headline(report: AdditivityReport) -> list[str]:
    """One line per main predictor: its verdict at every level."""
    lines = []
    for predictor in MAIN_PREDICTORS:
        verdicts: dict[str, list[str]] = {}
        for score in main_scores(report):
            if score.predictor == predictor:
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
        scores = [score for score in main_scores(report) if score.level == level]
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
