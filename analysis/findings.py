"""Findings in words, computed from the tables' numbers by the rules that stand beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pandas as pd

from analysis.rivals import p_words
from analysis.suite_data import ALL, ALPHA, BEST, RIVALS, allocator_label
from analysis.transfer import KINDS
from tmpdiff_bench.report.tables import enumerate_words, interval, number, percent
from tmpdiff_bench.statistics import Interval

Row = Mapping[str, Any]
VERDICTS = ("supported", "refuted", "undecided", "not defined")
_SAYS = {
    "H1": "H1, deviations of single steps add up as vectors",
    "H1m": "H1m, they add up in mean square",
    "H2": "H2, deviations of different steps are orthogonal",
    "H3": "H3, latent RMSEs of single steps add up",
}


def records(frame: pd.DataFrame, **wanted: Any) -> list[dict[str, Any]]:
    """Rows whose columns have the wanted values."""
    for name, value in wanted.items():
        frame = frame[frame[name] == value]
    rows: list[dict[str, Any]] = frame.to_dict("records")
    return rows


def whole(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The rows over all values of the columns; of a column with one value, that value's."""
    for column in columns:
        over_all = frame[frame[column] == ALL]
        frame = over_all if len(over_all) else frame
    return frame


def on_hypotheses(frame: pd.DataFrame) -> Iterator[str]:
    """Per hypothesis, where it has which verdict, and between what its number lies."""
    for name, says in _SAYS.items():
        rows = records(frame, hypothesis=name)
        if not rows:
            continue
        told = []
        for verdict in VERDICTS:
            where: dict[str, list[str]] = {}
            for row in rows:
                if row["verdict"] == verdict:
                    where.setdefault(row["model"].partition(" (")[0], []).append(row["level"])
            if where:
                places = [f"{model} at {enumerate_words(at)}" for model, at in where.items()]
                told.append(f"{verdict} for {', '.join(places)}")
        numbers = [row["estimate"] for row in rows if math.isfinite(row["estimate"])]
        write = percent if name == "H2" else number
        span = ""
        if numbers:
            span = f" ({rows[0]['quantity']} {write(min(numbers))} to {write(max(numbers))})"
        yield f"{says}: {'; '.join(told)}{span}."


def on_regret(frame: pd.DataFrame) -> Iterator[str]:
    """All allocators by mean regret with price; then those that none beats in both."""
    rows = records(whole(frame, "model", "levels").sort_values("regret", kind="stable"))
    rows = [row for row in rows if row["allocator"] != "exhaustive"]
    if not rows:
        return
    told = [
        f"{allocator_label(row['allocator'])} {interval(Interval.of(row, 'regret'), percent)} "
        f"after {row['evaluations']:.0f}"
        for row in rows
    ]
    yield (
        f"At 8 steps, where every plan is known, mean regrets over up to "
        f"{max(row['tasks'] for row in rows)} tasks, and evaluations paid, are: "
        f"{enumerate_words(told)}."
    )
    front = [
        allocator_label(row["allocator"])
        for row in rows
        if not any(
            other["regret"] <= row["regret"]
            and other["evaluations"] <= row["evaluations"]
            and (other["regret"], other["evaluations"]) != (row["regret"], row["evaluations"])
            for other in rows
        )
    ]
    verb = "is" if len(front) == 1 else "are"
    yield f"Beaten by no other in both regret and evaluations {verb} {enumerate_words(front)}."


def on_rivals(frame: pd.DataFrame) -> Iterator[str]:
    """For each rival, the plans that are best on calibration; then who beats both everywhere."""
    best = frame[frame["allocator"] == BEST]
    for rival in RIVALS:
        rows = best[best["rival"] == rival]
        each = rows[rows["model"] != ALL]
        if each.empty:
            continue
        counts = each["outcome"].value_counts()
        told = [
            f"{interval(Interval.of(row, 'ratio'))} at {row['steps']} steps with {row['levels']} "
            f"({row['outcome']}, p {p_words(row['p_holm'])})"
            for row in records(whole(rows, "model"))
        ]
        tally = [
            f"{name} in {counts[name]}"
            for name in ("better", "worse", "undecided")
            if name in counts
        ]
        yield (
            f"Temporal mixed precision against {allocator_label(rival)}: at the same target "
            "speedup, the plan that is best on calibration has this times the rival's latent "
            f"RMSE on held-out prompts: {enumerate_words(told)}. By model, steps and levels, it "
            f"is {enumerate_words(tally)} of {len(each)} cases."
        )
    over_all = whole(frame, "model")
    winners = [
        allocator_label(str(name))
        for name, rows in over_all.groupby("allocator", sort=False)
        if name not in (BEST, *RIVALS)
        and set(rows["rival"]) == set(RIVALS)
        and (rows["outcome"] == "better").all()
    ]
    said = enumerate_words(winners) if winners else "no single allocator"
    yield f"Better than both rivals at every number of steps and set of levels: {said}."


def on_first_last(frame: pd.DataFrame) -> Iterator[str]:
    """Where it is good enough, and how it is elsewhere."""
    for verdict in ("good enough", "not good enough", "undecided"):
        rows = records(frame, verdict=verdict)
        if not rows:
            yield f"Nowhere is first-and-last-n found {verdict}."
            continue
        where: dict[str, list[str]] = {}
        for row in rows:
            place = f"{row['model']}, {row['steps']} steps, {row['levels']}"
            where.setdefault(place, []).append(f"{number(row['target_speedup'])}x")
        ratios = [row["ratio"] for row in rows]
        places = "; ".join(f"{place} at {enumerate_words(at)}" for place, at in where.items())
        yield (
            f"First-and-last-n is {verdict} in {len(rows)} of {len(frame)} cases "
            f"(error {number(min(ratios))} to {number(max(ratios))} times the best other's): "
            f"{places}."
        )


def on_ranks(frame: pd.DataFrame) -> Iterator[str]:
    """The best mean rank, and those not significantly behind."""
    for steps, rows in frame.groupby("steps"):
        first = rows.loc[rows["mean_rank"].idxmin()]
        near = rows[rows["mean_rank"] < first["mean_rank"] + first["critical_difference"]]
        others = [allocator_label(n) for n in near["allocator"] if n != first["allocator"]]
        tied = f"not significantly behind are {enumerate_words(others)}" if others else ""
        yield (
            f"At {steps} steps {allocator_label(first['allocator'])} has the best mean rank, "
            f"{first['mean_rank']:.2f} of {first['allocators']}; "
            f"{tied or 'all others are significantly behind'} (critical difference "
            f"{first['critical_difference']:.2f}, {first['blocks']} blocks)."
        )


def on_transfer(frame: pd.DataFrame) -> Iterator[str]:
    """One sentence a kind."""
    for row in records(whole(frame, "model", "allocator")):
        sure = "significant" if row["p_holm"] < ALPHA else "not significant"
        yield (
            f"A plan from {KINDS.get(row['kind'], row['kind'])} has "
            f"{interval(Interval.of(row, 'ratio'))} times the error of the plan allocated in place "
            f"({sure}, p {p_words(row['p_holm'])}); {percent(row['same_plan'])} of them are the "
            "same plan."
        )


def on_drift(frame: pd.DataFrame) -> Iterator[str]:
    """One sentence a condition: the reference's drift, then that of plans with low steps."""
    for condition, rows in frame.groupby("condition", sort=False):
        low = rows["plan"].str.contains("w[48]a[48]")
        told = [
            f"{what} by up to {_rounded(part['largest_ratio'].max())} times the least single-step "
            "error"
            for what, part in (("reference runs", rows[~low]), ("plans with low steps", rows[low]))
            if len(part)
        ]
        yield f"Under {condition}, {enumerate_words(told)} drift away from what they were."


def _rounded(value: float) -> str:
    """Two digits, without an exponent."""
    return f"{float(f'{value:.2g}'):,.10g}"


def on_quality(frame: pd.DataFrame) -> Iterator[str]:
    """What the reference itself draws as asked."""
    rows = frame[(frame["allocator"] == "reference") & (frame["metric"] == "scene_objects")]
    for model, group in rows.groupby("model", sort=False):
        first = group.iloc[0]
        yield (
            f"The reference of {model} has {interval(Interval.of(first, 'mean'))} of the objects "
            f"as asked at {first['steps']} steps."
        )


RULES: Mapping[str, Callable[[pd.DataFrame], Iterator[str]]] = {
    "hypotheses": on_hypotheses,
    "regret": on_regret,
    "rivals": on_rivals,
    "first-last": on_first_last,
    "ranks": on_ranks,
    "quality": on_quality,
    "transfer": on_transfer,
    "drift": on_drift,
}
