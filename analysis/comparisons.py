"""From result tables to comparisons: at matched speedup, regret, ranks, transfer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from tmpdiff_bench.errors import UsageError, check_known
from tmpdiff_bench.statistics import Floats, Ranks, holm, mean_ranks, paired_interval, sign_flip
from tmpdiff_bench.suite.results import SuiteResults
from tmpdiff_bench.suite.rules import REFERENCE
from tmpdiff_bench.suite.v1 import MATCHED

# metrics that are distances: compared as ratios, hence by the difference of their logarithms
LOGARITHMIC = (MATCHED, "lpips-scenes")
_SMALLEST = 1e-12  # of a distance, so that its logarithm exists


def matched(
    results: SuiteResults,
    *,
    metric: str = MATCHED,
    baseline: str = "uniform",
    by: Sequence[str] = ("model", "steps", "levels"),
) -> pd.DataFrame:
    """Every allocator against `baseline` on the tasks that both ran on, one row per allocator and
    value of `by`.

    Columns: `by`, `metric`, `allocator`, `baseline`, `tasks`, `prompts`, `difference` with `low`
    and `high` (95 %), `p` (sign flips), `p_holm` (over the allocators of one value of `by`),
    `speedup` and `baseline_speedup` (means reached: the targets or above). Differences are
    allocator minus baseline; of distances they are of natural logarithms (-0.1 is an error about
    10 % lower). They are means over prompts, each prompt's over its tasks first; prompts of
    different sets are different prompts. A tie in every task has p = 1.
    """
    scores = _values(results.scores, metric)
    check_known("allocator in the results:", baseline, set(scores["allocator"]))
    rows = []
    for place, part in scores.groupby(list(by), sort=False):
        wide = part.pivot_table(
            index=["task", "prompt_id", "seed"], columns="allocator", values="value", sort=False
        )
        speedups = part.groupby(["task", "allocator"], sort=False)["speedup"].first().unstack()
        found = []
        for allocator in wide.columns:
            if allocator in (baseline, REFERENCE):
                continue
            both = wide[[allocator, baseline]].dropna()
            if both.empty:
                continue
            differences = (both[allocator] - both[baseline]).groupby("prompt_id").mean()
            tasks = both.index.get_level_values("task").unique()
            found.append(
                {
                    **dict(zip(by, place, strict=True)),
                    "metric": metric,
                    "allocator": allocator,
                    "baseline": baseline,
                    "tasks": len(tasks),
                    "prompts": len(differences),
                    **_inference(differences.to_numpy()),
                    "speedup": speedups.loc[tasks, allocator].mean(),
                    "baseline_speedup": speedups.loc[tasks, baseline].mean(),
                }
            )
        for row, adjusted in zip(found, holm([row["p"] for row in found]), strict=True):
            row["p_holm"] = adjusted
        rows += found
    return pd.DataFrame(rows)


def ranks(
    results: SuiteResults,
    *,
    metric: str = MATCHED,
    tasks: pd.Series | None = None,
    block: Sequence[str] = ("model", "prompt_set", "steps", "levels"),
) -> Ranks:
    """Mean ranks on evaluation prompts of the allocators that ran on all `tasks` (a mask over the
    rows of `scores`; by default those of 8 steps, where all ran).

    A block is a value of `block`: means over its target speedups and prompts, which are not
    independent. Lower is better: similarities are negated.
    """
    mask = results.scores["steps"] == 8 if tasks is None else tasks
    scores = _values(results.scores[mask], metric)
    scores = scores[scores["allocator"] != REFERENCE]
    means = scores.groupby(["task", *block, "allocator"])["value"].mean().reset_index()
    wide = means.groupby([*block, "allocator"])["value"].agg(["mean", "size"]).unstack()
    whole = wide["size"].eq(wide["size"].max(axis=1), axis=0).all()
    names = [name for name in whole.index if whole[name]]
    values = wide["mean"][names].to_numpy()
    if _higher_is_better(metric):
        values = -values
    return mean_ranks(values, names)


def transfer_losses(
    results: SuiteResults,
    *,
    metric: str = MATCHED,
    by: Sequence[str] = ("kind", "steps", "levels", "source", "prompt_set"),
) -> pd.DataFrame:
    """What it costs to use a plan that was allocated on something else: its value minus that of the
    task's own plan, on the same samples; columns as of `matched`, and `same_plan`, the share of
    tasks where both are one plan.

    Plans brought from another number of steps are compared only where they are within the budget.
    """
    table = _values(results.transfers, metric)
    key = ["task", "allocator", "kind", "prompt_id", "seed"]
    own = table[table["native"]].drop_duplicates(key).set_index(key)
    rows = []
    for place, part in table[~table["native"] & table["within_budget"]].groupby(list(by)):
        both = part.set_index(key).join(own[["value", "plan"]].add_suffix("_own"), how="inner")
        if both.empty:
            continue
        differences = (both["value"] - both["value_own"]).groupby("prompt_id").mean()
        rows.append(
            {
                **dict(zip(by, place, strict=True)),
                "metric": metric,
                "tasks": both.index.get_level_values("task").nunique(),
                "prompts": len(differences),
                "same_plan": float((both["plan"] == both["plan_own"]).mean()),
                **_inference(differences.to_numpy()),
            }
        )
    return pd.DataFrame(rows)


def _values(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Rows of a metric, distances as logarithms. Raises `UsageError` where there are none."""
    check_known("metric in the results:", metric, set(table["metric"]))
    rows = table[table["metric"] == metric]
    if metric in LOGARITHMIC:
        return rows.assign(value=np.log(np.maximum(rows["value"], _SMALLEST)))
    if not np.isfinite(rows["value"]).all():
        raise UsageError(
            f"{metric} is infinite for some samples, which are the reference to the last bit: "
            f"compare {MATCHED}"
        )
    return rows


def _inference(differences: Floats) -> dict[str, float]:
    interval = paired_interval(differences)
    p = sign_flip(differences) if len(differences) > 1 else math.nan
    return {"difference": interval.estimate, "low": interval.low, "high": interval.high, "p": p}


def _higher_is_better(metric: str) -> bool:
    from tmpdiff_bench.metrics import get_metric

    return get_metric(metric).higher_is_better
