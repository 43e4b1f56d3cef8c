"""From a recording to an additivity report, and from several reports to a joint one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tmpdiff_bench.additivity.findings import HYPOTHESES_RULE, Findings, fidelity
from tmpdiff_bench.additivity.hypotheses import PromptBootstrap, mean_of, rank_within
from tmpdiff_bench.additivity.inference import RULE, additivity_test, check_levels, decide, r2_plans
from tmpdiff_bench.additivity.measurements import FLOOR_MULTIPLE, Group, Measurements
from tmpdiff_bench.additivity.predictors import (
    PARAMETER_FREE,
    PREDICTORS,
    NotDefinedError,
    Training,
)
from tmpdiff_bench.additivity.records import (
    DesignFreeCheck,
    Predictions,
    Score,
    Superposition,
)
from tmpdiff_bench.additivity.result import AdditivityReport
from tmpdiff_bench.errors import UsageError, check_known
from tmpdiff_bench.report.style import MIXED
from tmpdiff_bench.statistics import holm

if TYPE_CHECKING:
    from tmpdiff_bench.trajectory.recording import Recording


_RULE = RULE + " Both decisions use p values adjusted (Holm) over the metrics of a predictor. "
FEW_PLANS = 5  # below, t quantiles exceed 3
_T = TypeVar("_T")


def analyse(
    recording: Recording,
    *,
    metrics: Sequence[str] | None = None,
    predictors: Sequence[str] | None = None,
    margin: float = 0.10,
    alpha: float = 0.05,
    rng: int | np.random.Generator = 0,
) -> AdditivityReport:
    """Test every hypothesis of additivity on a recording, and compare predictors of joint errors.

    `metrics`: names in the recording's table (by default all that are errors, 0 for the reference
    itself: PSNR or scene accuracy do not add up, and are in `fidelity` alone); `predictors`: names
    of `PREDICTORS` (all by default); `margin`: how far joint/predicted may be from 1, as a share,
    to count as additive; `alpha`: level of the tests. The same recording and `rng` give the same
    report, and a score depends on what else is asked for only through Holm's adjustment.

    Plans of one low level are fitted and scored among themselves, apart from the complement plans
    (design-free check only). Predictors with free parameters are fitted to the training plans and
    scored on the held-out third; for those without, every plan is held out. Plans of several low
    levels, "mixed", are scored with predictors fitted to the training plans of all levels. Whatever
    can't be computed is named with its reason in `warnings`.

    >>> import tempfile, tmpdiff_bench as tb
    >>> small = tb.Experiment("sd3", steps=4, levels=("fp32", "w4a4"), num_prompts=2, num_seeds=1)
    >>> report = analyse(tb.record(small, tempfile.mkdtemp()))
    >>> report.save(tempfile.mkdtemp()).name
    'report.html'

    Raises `UsageError` for unknown names, a margin or alpha out of range, no joint plan, or a table
    that lacks a value, or has one that is not finite or not that of the stored latents.
    """
    check_levels(margin, alpha)
    if not recording.plans:
        raise UsageError("the recording has no joint plan: additivity can't be tested")
    metrics = _errors(recording, metrics)
    predictors = _chosen("predictor", predictors, list(PREDICTORS))
    data = Measurements.of(recording, metrics)
    draws, tests = (int(seed) for seed in np.random.default_rng(rng).integers(2**32, size=2))
    bootstrap = PromptBootstrap.of(data.prompt_ids, alpha=alpha, seed=draws)
    groups = data.groups()
    scored = [
        _score(data, group, metric, name, bootstrap, margin=margin, seed=tests)
        for group in groups
        for metric in metrics
        for name in predictors
    ]
    scores = adjusted([score for score, _ in scored], alpha)
    findings = Findings(data, bootstrap, margin)
    levels = [group for group in groups if group.level != MIXED]
    superposition = _present(findings.superposition(group) for group in levels)
    design_free = _present(findings.design_free(g, metric) for g in levels for metric in metrics)
    intervals = {"inner": 100 * (1 - 2 * alpha), "outer": 100 * (1 - alpha)}
    return AdditivityReport(
        manifest=recording.manifest,
        levels=recording.levels,
        steps=recording.steps,
        prompts=bootstrap.prompts,
        samples=len(recording.samples),
        margin=margin,
        alpha=alpha,
        rule=(_RULE + HYPOTHESES_RULE).format(margin=margin, alpha=alpha, **intervals),
        scores=scores,
        superposition=superposition,
        design_free=design_free,
        sensitivity=tuple(findings.sensitivities(metrics)),
        grams=tuple(findings.grams()),
        predictions=_present(found for _, found in scored),
        warnings=tuple(_warnings(data, scores, superposition, design_free)),
        fidelity=tuple(fidelity(recording, bootstrap)),
        recording=recording,
    )


def _score(
    data: Measurements,
    group: Group,
    metric: str,
    name: str,
    bootstrap: PromptBootstrap,
    *,
    margin: float,
    seed: int,
) -> tuple[Score, Predictions | None]:
    """Fit a predictor to the training plans of a group, and test it on the held-out ones."""
    plans, held, training = _split(data, group, name)
    membership, joint = data.membership[:, group.cells], data.joint[metric]
    score = Score(
        level=group.level,
        metric=metric,
        predictor=name,
        test=None,
        reason="",
        verdict="not defined",
        training_plans=len(training),
        held_out_plans=int(held.sum()),
        floor_ratio=group.floor_ratio,
    )
    sample = Training(membership[training], joint[training], data.prompt_ids, bootstrap.alpha)
    try:
        fitted = PREDICTORS[name](data.single_errors(metric, group.cells), sample)
    except NotDefinedError as error:
        return replace(score, reason=str(error)), None
    predicted = fitted.predict(membership[plans])
    found = Predictions(
        level=group.level,
        metric=metric,
        predictor=name,
        plans=tuple(str(data.recording.plans[i]) for i in plans),
        kinds=tuple(data.recording.kinds[i] for i in plans),
        low_steps=data.low_steps[plans],
        held_out=held,
        predicted=predicted,
        joint=joint[plans],
    )
    common = data.recording.held_out[plans]
    codes = np.repeat(np.arange(np.count_nonzero(common)), joint.shape[1])
    r2_common = r2_plans(predicted[common].ravel(), joint[plans[common]].ravel(), codes)
    score = replace(score, parameters=fitted.parameters, r2_common=r2_common)
    predicted, joint = predicted[held], joint[plans[held]]
    try:
        test = additivity_test(
            predicted.ravel(),
            joint.ravel(),
            list(data.prompt_ids) * len(joint),
            np.repeat(plans[held], joint.shape[1]).tolist(),
            margin=margin,
            alpha=bootstrap.alpha,
            rng=seed,
        )
    except UsageError as error:
        return replace(score, reason=str(error)), found
    agreement, pairs = rank_within(predicted, joint, found.low_steps[held])
    rank = bootstrap.interval(mean_of(agreement)) if pairs else None
    return replace(score, test=test, rank_within=rank, rank_pairs=pairs), found


def _split(
    data: Measurements, group: Group, predictor: str
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    """Choose the plans of a group, say which are held out, and the plans to fit to."""
    designed = np.array([kind != "complement" for kind in data.recording.kinds])
    plans = group.plans[designed[group.plans]]
    if predictor in PARAMETER_FREE:
        return plans, np.ones(len(plans), dtype=np.bool_), plans[:0]
    pool = plans
    if group.level == MIXED:
        pool = np.concatenate([g.plans for g in data.groups() if g.level != MIXED] or [plans])
    fitted = designed & ~data.recording.held_out
    return plans, data.recording.held_out[plans], pool[fitted[pool]]


def adjusted(scores: Sequence[Score], alpha: float) -> tuple[Score, ...]:
    """Adjust p values over all scores of each level and predictor, and decide: over the metrics of
    a model, and over models too where the scores are of several.
    """
    result = list(scores)
    for family in dict.fromkeys((score.level, score.predictor) for score in scores):
        tested = [i for i, s in enumerate(scores) if (s.level, s.predictor) == family and s.test]
        tests = [test for i in tested if (test := scores[i].test)]
        wald = holm([test.wald_p for test in tests])
        equivalence = holm([test.equivalence_p for test in tests])
        outside = holm([test.outside_p for test in tests])
        for k, (i, test) in enumerate(zip(tested, tests, strict=True)):
            result[i] = replace(
                scores[i],
                verdict=decide(equivalence[k], outside[k], test.r2_plans, alpha),
                wald_p_holm=float(wald[k]),
                equivalence_p_holm=float(equivalence[k]),
                outside_p_holm=float(outside[k]),
            )
    return tuple(result)


def _errors(recording: Recording, names: Sequence[str] | None) -> list[str]:
    """The metrics to analyse. Raises `UsageError` for one that is absent or no error."""
    about = recording.manifest.get("metrics", {})  # recordings of before hold errors only
    known = [str(name) for name in pd.unique(recording.table["metric"])]
    errors = [name for name in known if about.get(name, {}).get("error", True)]
    for name in [] if names is None or isinstance(names, str) else names:
        if reason := about.get(name, {}).get("not_available"):
            raise UsageError(f"{name} was not measured: {reason}")
        if name in known and name not in errors:
            raise UsageError(
                f"{name} is no error: it is not 0 for the reference itself, so its values do not "
                f"add up over steps; errors are {', '.join(errors)}"
            )
    return _chosen("metric", names, errors)


def _chosen(kind: str, names: Sequence[str] | None, known: list[str]) -> list[str]:
    """Check names against the known ones; all of them where none are given."""
    if names is None:
        return known
    if isinstance(names, str) or not names:
        raise UsageError(f"{kind}s must be a non-empty list of names, got {names!r}")
    for name in names:
        check_known(kind, name, known)
    return list(dict.fromkeys(names))


def _present(found: Iterable[_T | None]) -> tuple[_T, ...]:
    return tuple(item for item in found if item is not None)


def _warnings(
    data: Measurements,
    scores: Iterable[Score],
    superposition: Iterable[Superposition],
    design_free: Iterable[DesignFreeCheck],
) -> Iterator[str]:
    """Say what a reader must know before using the numbers."""
    recording = data.recording
    for name, about in recording.manifest.get("metrics", {}).items():
        if about["not_available"]:
            yield f"{name}: {about['not_available']}"
    for level, flagged in zip(recording.levels[1:], data.flagged, strict=True):
        if np.any(flagged):
            yield (
                f"{level}: single errors below {FLOOR_MULTIPLE}x the numerical floor at steps "
                f"{', '.join(map(str, np.flatnonzero(flagged)))}: not to be interpreted"
            )
    if long := recording.manifest.get("long_prompts"):
        yield f"{len(long)} prompts were cut, being longer than the tokenizer takes"
    if not np.any(recording.floor > 0):
        yield "the numerical floor is 0: floor ratios are infinite"
    for level in recording.levels[1:]:
        if level not in {record.level for record in superposition}:
            yield f"{level}: no test of superposition, for want of a joint plan with an error"
        if level not in {record.level for record in design_free}:
            yield (
                f"{level}: no design-free check, which takes the all-low plan, plans with one high "
                "step, and single errors above zero"
            )
    reasons: dict[str, list[str]] = {}
    few: dict[tuple[str, int], list[str]] = {}
    for score in scores:
        if score.reason:
            where = f"{score.predictor} of {score.metric} at {score.level}"
            reasons.setdefault(score.reason, []).append(where)
        if score.held_out_plans < FEW_PLANS:
            few.setdefault((score.level, score.held_out_plans), []).append(score.predictor)
    for reason, places in reasons.items():
        yield f"not defined: {', '.join(places)}: {reason}"
    for (level, plans), names in few.items():
        fitted = ", ".join(dict.fromkeys(names))
        yield f"{level}: {fitted} scored on only {plans} held-out plans: wide intervals"


_JOINT_RULE = RULE + (
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
        return _stacked({name: report.scores_frame() for name, report in self.reports.items()})

    def superposition_frame(self) -> pd.DataFrame:
        """`AdditivityReport.superposition_frame` of all models, by name."""
        return _stacked({n: report.superposition_frame() for n, report in self.reports.items()})


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
    rule = _JOINT_RULE.format(margin=margin, alpha=alpha, tests=tests)
    return JointReport(joined, dict(left_out or {}), rule)


def _stacked(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    parts = [frame.assign(model=name) for name, frame in frames.items() if len(frame)]
    if not parts:
        return pd.DataFrame()
    whole = pd.concat(parts, ignore_index=True)
    return whole[["model", *(column for column in whole.columns if column != "model")]]
