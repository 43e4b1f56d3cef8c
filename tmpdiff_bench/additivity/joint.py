"""Several models' reports as one: verdicts adjusted over all of them together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pandas as pd

from tmpdiff_bench.additivity.analysis import adjusted
from tmpdiff_bench.additivity.inference import RULE
from tmpdiff_bench.additivity.records import AdditivityReport
from tmpdiff_bench.errors import UsageError

_RULE = RULE + (
    " Both decisions use p values adjusted (Holm 1979) for each predictor and level over all "
    "metrics of all models together: {tests}. Adjusting over more tests can turn a verdict of a "
    "model's own report, which is adjusted over its metrics only, into undecided. "
    "Hypotheses are decided model by model, without adjustment."
)


@dataclass(frozen=True, eq=False)
class JointReport:
    """Reports by name, with scores adjusted over their union; `left_out`: models without weights
    here, with the reason. `rule` says how verdicts were decided.
    """

    reports: Mapping[str, AdditivityReport]
    left_out: Mapping[str, str]
    rule: str

    def scores_frame(self) -> pd.DataFrame:
        """`AdditivityReport.scores_frame` of all models, by name."""
        frames = {name: report.scores_frame() for name, report in self.reports.items()}
        return _stacked(frames)

    def superposition_frame(self) -> pd.DataFrame:
        """`AdditivityReport.superposition_frame` of all models, by name."""
        frames = {name: report.superposition_frame() for name, report in self.reports.items()}
        return _stacked(frames)


def join(
    reports: Mapping[str, AdditivityReport], left_out: Mapping[str, str] | None = None
) -> JointReport:
    """Adjust the scores of several reports over their union, and decide anew.

    Raises:
        UsageError: no report, or reports of different margins or levels of the tests.
    """
    settings = {(report.margin, report.alpha) for report in reports.values()}
    if len(settings) != 1:
        raise UsageError("a joint report takes reports of one margin and one alpha")
    ((margin, alpha),) = settings
    scores = [score for report in reports.values() for score in report.scores]
    decided = iter(adjusted(scores, alpha))
    joined = {
        name: replace(report, scores=tuple(next(decided) for _ in report.scores))
        for name, report in reports.items()
    }
    sizes = {
        sum(s.test is not None for s in scores if (s.level, s.predictor) == family)
        for family in {(score.level, score.predictor) for score in scores}
    } - {0}
    least, most = min(sizes, default=0), max(sizes, default=0)
    tests = f"{most} tests each" if least == most else f"{least} to {most} tests each"
    rule = _RULE.format(margin=margin, alpha=alpha, tests=tests)
    return JointReport(joined, dict(left_out or {}), rule)


def _stacked(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    parts = [frame.assign(model=name) for name, frame in frames.items() if len(frame)]
    if not parts:
        return pd.DataFrame()
    whole = pd.concat(parts, ignore_index=True)
    return whole[["model", *(column for column in whole.columns if column != "model")]]
