"""The frozen tasks: any change here is a version 2 of the suite."""

from __future__ import annotations

import hashlib
import itertools
import json

import numpy as np
import pytest

from tmpdiff_bench.costs import load_costs
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.suite import FULL, QUICK, Group
from tmpdiff_bench.suite.rules import OURS, SEARCHES, SEARCHES_ONCE, every_plan, left_out
from tmpdiff_bench.suite.tasks import grouped
from tmpdiff_bench.suite.v1 import TARGETS, THREE, TWO, VERSION

# sha256 of the names of all tasks, and of who is left out: raise VERSION where they change
FROZEN = {1: "e3cf391d75676b44a0570ee6ab86b5247631c1d192367d01254893018992ac0e"}


def test_tasks_are_those_of_their_version() -> None:
    content = [[task.name, [left_out(task, name) != "" for name in OURS]] for task in FULL.tasks()]
    assert hashlib.sha256(json.dumps(content).encode()).hexdigest() == FROZEN[VERSION]


def test_the_crossing_is_that_of_the_design() -> None:
    tasks = FULL.tasks()
    assert len(tasks) == len({task.name for task in tasks}) == 4 * (2 + 1 + 1) * 6
    assert {len(task.levels) for task in tasks} == {2, 3}
    assert {task.steps for task in tasks} == {8, 20}
    assert {task.name for task in QUICK.tasks()} <= {task.name for task in tasks}
    assert all(len(own) == 6 for own in grouped(tasks).values())


@pytest.mark.parametrize("model", FULL.models)
def test_costs_are_those_of_formats_that_the_card_has(model: str) -> None:
    task = next(t for t in FULL.tasks() if t.model == model and t.levels == THREE)
    table = load_costs(task.cost_table)
    assert table.kind == "roofline"
    assert not set(THREE[1:]) & set(table.refused)
    assert task.step_costs()[0].tolist() == [
        table.levels[level].ms for level in ("bf16", "w8a8", "w4a4")
    ]


@pytest.mark.parametrize("model", FULL.models)
def test_targets_are_between_what_levels_alone_reach(model: str) -> None:
    reference, w8a8, w4a4 = (
        next(t for t in FULL.tasks() if t.model == model)
        .__class__(model, "", THREE, f"roofline-{model}-rtx4090-1024", 2.0, 1)
        .step_costs()[0]
    )
    two, three = TARGETS[model][TWO], TARGETS[model][THREE]
    assert two[2] == three[0] == np.floor(100 * reference / w8a8) / 100
    assert 1 < two[0] < two[1] < two[2]
    assert three[0] < three[1] < three[2] < reference / w4a4


def test_every_plan_is_all_that_are_within_a_budget_once() -> None:
    group = Group("sd3", "scenes-attributes", 8)
    two, three = every_plan(group)
    assert not set(two) & set(three)
    listed = {*two, *three}
    tasks = [task for task in FULL.tasks() if task.group == group]
    costs = {task: task.step_costs() for task in tasks}
    for choice in itertools.product(range(3), repeat=8):
        plan = PrecisionPlan(tuple(THREE[level] for level in choice))
        within = any(
            set(plan.levels) <= set(task.levels)
            and sum(costs[task][0, task.levels.index(level)] for level in plan)
            <= costs[task][:, 0].sum() / task.target_speedup * (1 + 1e-9)
            for task in tasks
        )
        assert within == (plan in listed), plan


def test_fewer_steps_are_the_most_within_the_budget() -> None:
    for task in FULL.tasks():
        steps, cost = task.fewer_steps(), task.step_costs()[0, 0]
        budget = task.steps * cost / task.target_speedup
        assert steps * cost <= budget * (1 + 1e-9) < (steps + 1) * cost


def test_every_allocator_runs_on_every_small_task_and_two_searches_on_one_large_one() -> None:
    for task in FULL.tasks():
        assert task.steps > 8 or not any(left_out(task, name) for name in OURS)
    large = [task for task in FULL.tasks() if task.steps == 20]
    for model, name in itertools.product(FULL.models, SEARCHES):
        runs = sum(t.model == model and not left_out(t, name) for t in large)
        assert runs == (name in SEARCHES_ONCE)
    assert not any(left_out(task, name) for task in large for name in ("bisection", "gram"))


@pytest.mark.parametrize("steps", [4, 8, 20])
def test_resampling(steps: int) -> None:
    plan = PrecisionPlan.parse("fp32*2 w8a8 w4a4*5")
    found = plan.resampled(steps)
    assert len(found) == steps
    assert plan.resampled(8) == plan
    order = [list(plan.levels).index(level) for level in dict.fromkeys(found.levels)]
    assert order == sorted(order)
