"""A run of the suite: every task allocated, scored and transferred; resumable through the store."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from tmpdiff_bench.allocators import get_allocator
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.store import CellStore, digest
from tmpdiff_bench.suite.allocating import (
    Outcome,
    absent,
    allocate_all,
    optimum_of,
    problem_of,
)
from tmpdiff_bench.suite.bench import Bench, Prompts
from tmpdiff_bench.suite.digests import digests
from tmpdiff_bench.suite.drift import drift_rows
from tmpdiff_bench.suite.forecast import forecast
from tmpdiff_bench.suite.measured import MeasuredErrors
from tmpdiff_bench.suite.results import COLUMNS, SuiteResults, picture_name
from tmpdiff_bench.suite.rules import OURS, REFERENCE, Allocate, every_plan
from tmpdiff_bench.suite.scoring import Scorer, ShortRuns
from tmpdiff_bench.suite.tasks import Group, Task, grouped
from tmpdiff_bench.suite.transfer import TRANSFERRED, Transfer, from_others, other_calibrations
from tmpdiff_bench.suite.v1 import PROMPT_SETS, SEED, Profile
from tmpdiff_bench.trajectory.workload import environment

Rows = list[dict[str, Any]]


@dataclass
class _Account:
    """Rows found so far, and what they took."""

    allocations: Rows = field(default_factory=list)
    scores: Rows = field(default_factory=list)
    transfers: Rows = field(default_factory=list)
    drift: Rows = field(default_factory=list)
    pictures: dict[str, Any] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    pictured: dict[str, list[str]] = field(default_factory=dict)
    floors: dict[str, float] = field(default_factory=dict)
    computed: dict[str, int] = field(default_factory=dict)
    seconds_per_nfe: dict[str, float] = field(default_factory=dict)


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
    comparable = digests(profile, tasks, account.absent)
    return SuiteResults(
        manifest={
            "key": digest(comparable),
            "profile": profile.name,
            "samples": {"calibration": profile.calibration, "evaluation": profile.evaluation},
            "tasks": [task.name for task in tasks],
            "allocators": [*OURS, *(contributed or {})],
            "digests": comparable,
            "titles": account.titles,
            "absent_models": account.absent,
            "pictured": account.pictured,
            "floors": account.floors,
            "nfe": {"forecast": progress.forecast, "computed": account.computed},
            "seconds": round(time.perf_counter() - started, 1),
            "seconds_per_nfe": account.seconds_per_nfe,
            "environment": environment("cpu"),
        },
        allocations=_table(account.allocations, "allocations"),
        scores=_table(account.scores, "scores"),
        transfers=_table(account.transfers, "transfers"),
        drift=_table(account.drift, "drift"),
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
        account.titles[self._model] = bench.model.title
        for group, tasks in self._groups.items():
            self._progress.describe(f"{group.name} allocating")
            self._allocate(bench, group, tasks)
            self._progress.end(group, "allocating")
            self._drift(bench, group)
            self._progress.end(group, "drift")
        account.computed[self._model] = computed = self._progress.spent - spent
        seconds = time.perf_counter() - started
        rate = _pace(store, self._model, computed, seconds)
        if not math.isnan(rate):
            account.seconds_per_nfe[self._model] = rate
        for outcomes in self._outcomes.values():
            optimum = optimum_of(outcomes)
            account.allocations += [outcome.row(optimum, rate) for outcome in outcomes]
        for group, tasks in self._groups.items():
            self._progress.describe(f"{group.name} scoring")
            self._score(bench, group, tasks)
            self._progress.end(group, "scoring")
        account.computed[self._model] = self._progress.spent - spent

    def _absent(self, reason: str) -> None:
        tqdm.write(f"{self._model}: {reason}")
        self._account.absent[self._model] = reason
        for group, tasks in self._groups.items():
            for task in tasks:
                outcomes = absent(task, reason, self._contributed)
                self._account.allocations += [o.row(math.nan, math.nan) for o in outcomes]
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
        self._account.drift += rows
        batch = [row["latent_rmse"] for row in rows if row["condition"] == "batch 1"]
        self._account.floors[group.name] = sum(batch) / len(batch)

    def _score(self, bench: Bench, group: Group, tasks: Sequence[Task]) -> None:
        prompts = Prompts(group.prompt_set, "evaluation", self._profile.evaluation, SEED)
        scorer = Scorer(bench, prompts, group.steps)
        transfers = [transfer for task in tasks for transfer in self._transfers(task)]
        outcomes = [outcome for task in tasks for outcome in self._outcomes[task]]
        chosen = [outcome.plan for outcome in outcomes if outcome.plan is not None]
        reference = PrecisionPlan.uniform(tasks[0].levels[0], group.steps)
        scorer.prepare([reference, *chosen, *(transfer.plan for transfer in transfers)])
        for task in tasks:
            columns = {**task.columns(), "allocator": REFERENCE, "plan": str(reference)}
            self._account.scores += [
                {**columns, "speedup": 1.0, **row} for row in scorer.rows(reference, alone=True)
            ]
        for outcome in outcomes:
            if outcome.plan is not None:
                columns = {**outcome.task.columns(), "allocator": outcome.allocator}
                columns |= {"plan": str(outcome.plan), "speedup": outcome.speedup}
                self._account.scores += [{**columns, **row} for row in scorer.rows(outcome.plan)]
        for transfer in transfers:
            columns = transfer.columns()
            self._account.transfers += [{**columns, **row} for row in scorer.rows(transfer.plan)]
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
        account.pictured[group.name] = list(prompts)
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


def _table(rows: Rows, name: str) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(COLUMNS[name]))
