"""A run of the suite: every task allocated, scored and transferred; resumable through the store."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from tmpdiff_bench.allocators import get_allocator
from tmpdiff_bench.costs import load_costs
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.pipelines.digests import weights_digest
from tmpdiff_bench.pipelines.embedded import call_defaults, model_folder
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.store import CellStore, digest
from tmpdiff_bench.suite.allocating import (
    TRANSFERRED,
    Outcome,
    Transfer,
    absent,
    allocate_all,
    from_others,
    optimum_of,
    other_calibrations,
    problem_of,
)
from tmpdiff_bench.suite.bench import Bench, Prompts
from tmpdiff_bench.suite.forecast import forecast
from tmpdiff_bench.suite.measured import MeasuredErrors, drift_rows
from tmpdiff_bench.suite.results import COLUMNS, SuiteResults, picture_name
from tmpdiff_bench.suite.rules import OURS, REFERENCE, Allocate, every_plan
from tmpdiff_bench.suite.scoring import Scorer, ShortRuns
from tmpdiff_bench.suite.tasks import Group, Task, grouped
from tmpdiff_bench.suite.v1 import METRICS, PROMPT_SETS, SEED, VERSION, Profile
from tmpdiff_bench.trajectory.workload import ALGORITHM_VERSION, environment

Rows = list[dict[str, Any]]


class _Account:
    """Rows of the tables found so far, what else the manifest says by name, and pictures."""

    def __init__(self) -> None:
        self.rows: dict[str, Rows] = {name: [] for name in COLUMNS}
        names = ("titles", "absent_models", "pictured", "floors", "computed", "seconds_per_nfe")
        self.about: dict[str, dict[str, Any]] = {name: {} for name in names}
        self.pictures: dict[str, Any] = {}


def run_suite(
    profile: Profile,
    store: Path,
    *,
    tasks: Sequence[Task] | None = None,
    contributed: Mapping[str, Allocate] | None = None,
) -> SuiteResults:
    """Run `tasks` (by default all of the profile) with all allocators of ours and `contributed`.

    Whatever is measured is kept in `store`: killed and run again, it goes on where it was. A model
    without weights gets rows that say so.
    """
    tasks = profile.tasks() if tasks is None else tasks
    started = time.perf_counter()
    account = _Account()
    with _Progress(tasks, profile) as progress:
        for model in dict.fromkeys(task.model for task in tasks):
            own = [task for task in tasks if task.model == model]
            _ModelRun(profile, own, contributed or {}, account, progress).run(CellStore(store))
    comparable = digests(profile, tasks, account.about["absent_models"])
    return SuiteResults(
        manifest={
            "key": digest(comparable),
            "profile": profile.name,
            "samples": {"calibration": profile.calibration, "evaluation": profile.evaluation},
            "tasks": [task.name for task in tasks],
            "allocators": [*OURS, *(contributed or {})],
            "digests": comparable,
            "nfe": {"forecast": progress.forecast, "computed": account.about.pop("computed")},
            "seconds": round(time.perf_counter() - started, 1),
            **account.about,
            "environment": environment("cpu"),
        },
        **{
            name: pd.DataFrame(rows, columns=list(COLUMNS[name]))
            for name, rows in account.rows.items()
        },
        pictures=account.pictures,
    )


class _Progress:
    """One bar for the whole, in network evaluations. Its total is a forecast, which every phase
    that ends replaces by what it took.
    """

    def __init__(self, tasks: Sequence[Task], profile: Profile) -> None:
        self._parts = {g: forecast(g, some, profile) for g, some in grouped(tasks).items()}
        self.forecast = sum(part.total for part in self._parts.values())
        self._bar = tqdm(
            total=self.forecast, desc="suite", unit="NFE", unit_scale=True, smoothing=0.02
        )
        self._done = self.spent = 0

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        if exception[0] is None:
            self._bar.total = self._bar.n
        self._bar.close()

    def advance(self, nfe: int) -> None:
        """Some network evaluations were just spent."""
        self.spent += nfe
        self._bar.update(nfe)

    def end(self, group: Group, phase: str) -> None:
        """A phase of a group is over: what the store held counts as done."""
        self._done += getattr(self._parts[group], phase)
        if self._bar.n > self._done:
            self._bar.total += self._bar.n - self._done
            self._done = self._bar.n
        self._bar.update(self._done - self._bar.n)

    def describe(self, text: str) -> None:
        self._bar.set_description_str(text)


class _ModelRun:
    """All tasks of one model: first allocations, then scores, so that plans can be transferred."""

    def __init__(
        self,
        profile: Profile,
        tasks: Sequence[Task],
        contributed: Mapping[str, Allocate],
        account: _Account,
        progress: _Progress,
    ) -> None:
        self._profile, self._contributed = profile, contributed
        self._account, self._progress = account, progress
        self._groups = grouped(tasks)
        self._model = tasks[0].model
        self._outcomes: dict[Task, list[Outcome]] = {}
        self._moved: list[Transfer] = []
        self._smallest: dict[Group, float] = {}

    def run(self, store: CellStore) -> None:
        """Allocate, score and transfer; a model that is not there is said to be absent."""
        try:
            bench = Bench(self._model, store, self._progress.advance)
        except UsageError as error:
            self._absent(str(error))
            return
        account, spent, started = self._account, self._progress.spent, time.perf_counter()
        account.about["titles"][self._model] = bench.model.title
        for group, tasks in self._groups.items():
            self._progress.describe(f"{group.name} allocating")
            self._allocate(bench, group, tasks)
            self._progress.end(group, "allocating")
            self._drift(bench, group)
            self._progress.end(group, "drift")
        account.about["computed"][self._model] = computed = self._progress.spent - spent
        seconds = time.perf_counter() - started
        rate = _pace(store, self._model, computed, seconds)
        if not math.isnan(rate):
            account.about["seconds_per_nfe"][self._model] = rate
        for outcomes in self._outcomes.values():
            optimum = optimum_of(outcomes)
            account.rows["allocations"] += [outcome.row(optimum, rate) for outcome in outcomes]
        for group, tasks in self._groups.items():
            self._progress.describe(f"{group.name} scoring")
            self._score(bench, group, tasks)
            self._progress.end(group, "scoring")
        account.about["computed"][self._model] = self._progress.spent - spent

    def _absent(self, reason: str) -> None:
        tqdm.write(f"{self._model}: {reason}")
        self._account.about["absent_models"][self._model] = reason
        for group, tasks in self._groups.items():
            for task in tasks:
                outcomes = absent(task, reason, self._contributed)
                self._account.rows["allocations"] += [o.row(math.nan, math.nan) for o in outcomes]
            for phase in ("allocating", "scoring", "drift"):
                self._progress.end(group, phase)

    def _allocate(self, bench: Bench, group: Group, tasks: Sequence[Task]) -> None:
        prompts = Prompts(group.prompt_set, "calibration", self._profile.calibration, SEED)
        errors = MeasuredErrors(bench, prompts, group.steps)
        for plans in every_plan(group):
            errors.prepare(plans)
        short = ShortRuns(bench, prompts, group.steps)
        nfe, samples = bench.nfe(prompts, group.steps), len(prompts.table)
        for task in tasks:
            self._outcomes[task] = allocate_all(
                task, errors, short, nfe, samples, self._contributed
            )
        for (kind, source), others in other_calibrations(group, prompts).items():
            elsewhere = MeasuredErrors(bench, others, group.steps)
            for task in tasks:
                problem = problem_of(task, elsewhere, nfe)
                for name in TRANSFERRED:
                    plan = get_allocator(name)(problem).plan
                    self._moved.append(Transfer(task, name, kind, source, False, plan))
        self._smallest[group] = errors.smallest_single

    def _drift(self, bench: Bench, group: Group) -> None:
        if group.prompt_set != PROMPT_SETS[0]:
            return
        prompts = Prompts(group.prompt_set, "calibration", self._profile.calibration, SEED)
        rows = list(drift_rows(bench, group, prompts, self._smallest[group]))
        self._account.rows["drift"] += rows
        batch = [row["latent_rmse"] for row in rows if row["condition"] == "batch 1"]
        self._account.about["floors"][group.name] = sum(batch) / len(batch)

    def _score(self, bench: Bench, group: Group, tasks: Sequence[Task]) -> None:
        prompts = Prompts(group.prompt_set, "evaluation", self._profile.evaluation, SEED)
        scorer = Scorer(bench, prompts, group.steps)
        transfers = [transfer for task in tasks for transfer in self._transfers(task)]
        outcomes = [outcome for task in tasks for outcome in self._outcomes[task]]
        chosen = [outcome.plan for outcome in outcomes if outcome.plan is not None]
        reference = PrecisionPlan.uniform(tasks[0].levels[0], group.steps)
        scorer.prepare([reference, *chosen, *(transfer.plan for transfer in transfers)])
        rows = self._account.rows
        for task in tasks:
            columns = {**task.columns(), "allocator": REFERENCE, "plan": str(reference)}
            columns["speedup"] = 1.0
            rows["scores"] += [{**columns, **row} for row in scorer.rows(reference, alone=True)]
        for outcome in outcomes:
            if outcome.plan is not None:
                columns = {**outcome.task.columns(), "allocator": outcome.allocator}
                columns |= {"plan": str(outcome.plan), "speedup": outcome.speedup}
                rows["scores"] += [{**columns, **row} for row in scorer.rows(outcome.plan)]
        for transfer in transfers:
            columns = transfer.columns()
            rows["transfers"] += [{**columns, **row} for row in scorer.rows(transfer.plan)]
        self._keep_pictures(group, scorer, dict.fromkeys(chosen))

    def _transfers(self, task: Task) -> list[Transfer]:
        """Plans of other sets and steps, those of other calibrations, and the task's own beside."""
        moved = [transfer for transfer in self._moved if transfer.task == task]
        own = {o.allocator: o.plan for o in self._outcomes[task] if o.plan is not None}
        kinds = dict.fromkeys((t.allocator, t.kind) for t in moved)
        native = [
            Transfer(task, allocator, kind, "own", True, own[allocator])
            for allocator, kind in kinds
            if allocator in own
        ]
        return [*from_others(task, self._outcomes), *moved, *native]

    def _keep_pictures(
        self, group: Group, scorer: Scorer, chosen: Mapping[PrecisionPlan, None]
    ) -> None:
        account, place = self._account, (group.model, group.prompt_set, group.steps)
        pictures = scorer.reference.pictures
        account.pictures[picture_name(*place, REFERENCE)] = pictures
        prompts = scorer.prompts.table["prompt_id"].head(len(pictures))
        account.about["pictured"][group.name] = list(prompts)
        for plan in chosen:
            account.pictures[picture_name(*place, str(plan))] = scorer[plan].pictures


def _pace(store: CellStore, model: str, nfe: int, seconds: float) -> float:
    """Seconds of a network evaluation over all runs into a store, this one added; NaN for none."""
    key = digest({"purpose": "pace", "model": model})
    before = store.get(key)
    spent = np.array([nfe, seconds]) + (0 if before is None else before["spent"])
    if nfe:
        store.put(key, {"spent": spent})
    return float(spent[1] / spent[0]) if spent[0] else math.nan


def digests(profile: Profile, tasks: Sequence[Task], absent: Mapping[str, str]) -> dict[str, str]:
    """sha256 by what it is of: `tasks` (with the profile's numbers of samples), `metrics`, the
    `algorithm` that runs plans and draws noise, and every model that is there (with the arguments
    of its calls), prompt set and cost table.
    """
    found = {
        "tasks": digest(
            {
                "version": VERSION,
                "tasks": [task.name for task in tasks],
                "samples": [profile.calibration, profile.evaluation, SEED],
            }
        ),
        "metrics": digest({"metrics": METRICS}),
        "algorithm": digest({"version": ALGORITHM_VERSION}),
    }
    for model in dict.fromkeys(task.model for task in tasks):
        if model not in absent:
            weights = weights_digest(model_folder(model))
            about = {"weights": weights, "call": call_defaults(model)}
            found[f"model {model}"] = digest(about)
    for name in dict.fromkeys(task.prompt_set for task in tasks):
        sets = [
            Prompts(name, split, count, SEED).table
            for split, count in (
                ("calibration", profile.calibration),
                ("evaluation", profile.evaluation),
            )
        ]
        texts = [list(zip(t["prompt_id"], t["text"], t["requirement"], strict=True)) for t in sets]
        found[f"prompts {name}"] = digest({"prompts": texts})
    for name in dict.fromkeys(task.cost_table for task in tasks):
        content = load_costs(name).to_json().encode()
        found[f"costs {name}"] = hashlib.sha256(content).hexdigest()
    return found
