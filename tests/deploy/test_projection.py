"""Projection: the best first-last plan, against all plans tried one by one."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tmpdiff_bench.allocators import AllocationProblem
from tmpdiff_bench.deploy import StepPolicy, project
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.plan import PrecisionPlan

LEVELS = ("high", "mid", "low")


def problem(weights: dict[str, list[float]], steps: int) -> AllocationProblem:
    def error(plan: PrecisionPlan) -> float:
        return math.fsum(weights[level][step] for step, level in enumerate(plan))

    return AllocationProblem.for_speedup(
        1.0, levels=LEVELS, step_costs=np.tile([1.0, 0.5, 0.25], (steps, 1)), error=error
    )


def has_policy(plan: PrecisionPlan) -> bool:
    try:
        StepPolicy.of(plan, high="high")
    except UsageError:
        return False
    return True


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_nothing_within_the_cost_is_better(data: st.DataObject) -> None:
    steps = data.draw(st.integers(2, 5))
    numbers = st.lists(st.floats(0, 10), min_size=steps, max_size=steps)
    weights = {"high": [0.0] * steps, "mid": data.draw(numbers), "low": data.draw(numbers)}
    task = problem(weights, steps)
    drawn = st.lists(st.sampled_from(LEVELS), min_size=steps, max_size=steps)
    plan = PrecisionPlan(tuple(data.draw(drawn)))
    found = project(plan, task)
    assert has_policy(found.plan)
    assert task.cost(found.plan) <= task.cost(plan) * (1 + 1e-8)
    everything = map(PrecisionPlan, itertools.product(LEVELS, repeat=steps))
    errors = [
        task.error(p) for p in everything if has_policy(p) and task.cost(p) <= task.cost(plan)
    ]
    assert found.error == task.error(found.plan) == min(errors)
    if has_policy(plan):
        assert found.error <= found.original_error
    assert found.speedup == pytest.approx(steps / task.cost(found.plan))


def test_the_loss_is_said() -> None:
    task = problem({"high": [0.0] * 4, "mid": [9.0] * 4, "low": [1.0, 5.0, 2.0, 3.0]}, 4)
    found = project(PrecisionPlan.parse("low high low high"), task)
    assert str(found) == (
        "low high low high -> high*2 low*2\n"
        "error 3 (measured) -> 5 (measured), 1.67x; speedup 1.6 -> 1.6"
    )


def test_a_plan_of_other_levels_is_refused() -> None:
    task = problem({"high": [0.0] * 2, "mid": [1.0] * 2, "low": [1.0] * 2}, 2)
    with pytest.raises(UsageError, match="unknown level 'w4a4'"):
        project(PrecisionPlan.parse("high w4a4"), task)
    with pytest.raises(UsageError, match="has 3 steps"):
        project(PrecisionPlan.parse("high*3"), task)
