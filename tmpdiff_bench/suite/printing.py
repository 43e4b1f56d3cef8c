"""What the command prints: the list of tasks, and the summary of results."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from tmpdiff_bench.report.tables import aligned, finite
from tmpdiff_bench.suite.forecast import forecast
from tmpdiff_bench.suite.results import SuiteResults
from tmpdiff_bench.suite.rules import OURS, REFERENCE, left_out
from tmpdiff_bench.suite.tasks import Task, grouped
from tmpdiff_bench.suite.v1 import MATCHED, METRICS, VERSION, Profile


def listing(profile: Profile, tasks: Sequence[Task]) -> str:
    """Every task, who is left out, and the network evaluations of groups and of all."""
    lines, total = [], 0
    for group, own in grouped(tasks).items():
        nfe = forecast(group, own, profile).total
        total += nfe
        lines.append(f"{group.name}: about {nfe:,} NFE")
        for task in own:
            absent = [name for name in OURS if left_out(task, name)]
            without = f"  without {', '.join(absent)}" if absent else ""
            lines.append(f"  {task.name}{without}")
    lines.append(f"{len(tasks)} tasks of suite v{VERSION}, profile {profile.name}: {total:,} NFE")
    return "\n".join(lines)


def summary(results: SuiteResults, folder: Path) -> str:
    """Some lines of at most 100 columns: allocators by number of steps, what is absent."""
    lines = [
        f"suite v{VERSION}, profile {results.manifest['profile']}, "
        f"{results.allocations['task'].nunique()} tasks",
        "",
    ]
    for steps, table in by_steps(results).items():
        lines += [f"S = {steps}", _aligned(table), ""]
    lines += [f"{model}: {reason}" for model, reason in results.manifest["absent_models"].items()]
    failed = results.allocations[results.allocations["status"] == "failed"]
    lines += [f"{r.allocator} failed on {r.task}: {r.reason}" for r in failed.itertuples()]
    lines += [
        "error: geometric mean of latent RMSE on evaluation prompts, over the tasks in `tasks`",
        "ratio: of that to uniform's on the same tasks",
        "regret: against the least error of all plans, on calibration prompts; a median",
        "evals, nfe, seconds: what allocating takes, medians; measuring is not in the seconds",
        f"results: {folder}",
    ]
    return "\n".join(lines)


def as_json(results: SuiteResults) -> str:
    """The same numbers as JSON; what is not known is null."""
    tables = {
        f"S={steps}": [finite(row) for row in table.to_dict("records")]
        for steps, table in by_steps(results).items()
    }
    content: dict[str, Any] = {
        "suite_version": VERSION,
        "profile": results.manifest["profile"],
        "digests": results.manifest["digests"],
        "absent_models": results.manifest["absent_models"],
        "allocators": tables,
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)


def by_steps(results: SuiteResults) -> dict[int, pd.DataFrame]:
    """`allocator_table` by number of steps."""
    return {int(s): allocator_table(results, int(s)) for s in sorted(set(results.scores["steps"]))}


def allocator_table(results: SuiteResults, steps: int) -> pd.DataFrame:
    """One row per allocator that ran at a number of steps: `tasks`, `error` (geometric mean),
    `ratio` to uniform's on the same tasks, `regret` (median), `evaluations`, `nfe`, `seconds`
    (medians), and means of the other metrics.
    """
    scores = results.scores[results.scores["steps"] == steps]
    means = scores.groupby(["allocator", "task", "metric"], sort=False)["value"].mean().unstack()
    chosen = results.allocations[
        (results.allocations["steps"] == steps) & (results.allocations["status"] == "ok")
    ].set_index(["allocator", "task"])
    uniform = means.loc["uniform"][MATCHED]
    rows = []
    for name in dict.fromkeys(means.index.get_level_values("allocator")):
        own = means.loc[name]
        row: dict[str, Any] = {"allocator": name, "tasks": len(own)}
        if name != REFERENCE:
            about = chosen.loc[name]
            row |= {
                "error": _geometric(own[MATCHED]),
                "ratio": _geometric(own[MATCHED] / uniform.reindex(own.index)),
                "regret": about["regret"].median(),
                "evaluations": about["evaluations"].median(),
                "nfe": about["nfe"].median(),
                "seconds": about["seconds"].median(),
            }
        row |= {metric: own[metric].mean() for metric in METRICS if metric != MATCHED}
        rows.append(row)
    return pd.DataFrame(rows)


def _geometric(values: pd.Series) -> float:
    positive = values.dropna()
    if positive.empty:
        return math.nan
    return math.exp(sum(math.log(max(v, 1e-12)) for v in positive) / len(positive))


def _aligned(table: pd.DataFrame) -> str:
    headers = {"evaluations": "evals", "lpips-scenes": "lpips", "scene_objects": "objects"}
    shown = table.drop(columns="scene_all").rename(columns=headers)

    def text(value: object, column: str) -> str:
        if not isinstance(value, float):
            return str(value)
        if math.isnan(value):
            return "-"
        return f"{value:.0f}" if column in ("evals", "nfe") else f"{value:.3g}"

    cells = [[text(v, c) for c, v in row.items()] for row in shown.to_dict("records")]
    return aligned([list(map(str, shown.columns)), *cells])
