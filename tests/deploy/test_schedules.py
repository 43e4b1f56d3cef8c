"""Numbers of steps and noise levels other than those that a plan was made for."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from tests.deploy.conftest import PLAN, build, by_hand, call
from tests.tiny import WARNINGS
from tmpdiff_bench import deploy
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.plan import PlanSchedule, PrecisionPlan

pytestmark = [pytest.mark.filterwarnings(entry) for entry in WARNINGS]


def test_other_step_counts_are_an_error_unless_resampled(pipe: Any) -> None:
    deploy.apply(pipe, PLAN)
    expected = call(pipe)
    for steps in (3, 5):
        with pytest.raises(UsageError, match=f"the plan has 4 steps, the schedule .* {steps}"):
            call(pipe, steps)
    assert torch.equal(call(pipe), expected)
    deploy.apply(pipe, PLAN, resample=True)
    found = {steps: call(pipe, steps) for steps in (8, 2, 4)}
    deploy.remove(pipe)
    for steps, levels in ((8, [x for x in PLAN for _ in range(2)]), (2, ["w4a4"] * 2), (4, PLAN)):
        plan = PrecisionPlan(tuple(levels))
        expected = by_hand(pipe, plan, functools.partial(call, steps=steps))
        assert torch.equal(found[steps], expected)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=12), st.integers(1, 40))
def test_resampling(levels: list[str], steps: int) -> None:
    plan = PrecisionPlan(tuple(levels))
    found = plan.resampled(steps)
    assert len(found) == steps
    assert plan.resampled(len(plan)) == plan
    stretched = [level for level in levels for _ in range(steps)]  # at steps x len places
    middles = [stretched[(2 * i + 1) * len(levels) // 2] for i in range(steps)]
    assert list(found) == middles


def made_for(scheduler: Any, **options: Any) -> PrecisionPlan:
    """The plan, made for what a scheduler is set to."""
    scheduler.set_timesteps(4, **options)
    noise = tuple(scheduler.sigmas[:4].tolist()), tuple(scheduler.timesteps[:4].tolist())
    return replace(PLAN, schedule=PlanSchedule(type(scheduler).__name__, *noise))


def test_a_run_at_other_noise_levels_warns_once(pipe: Any) -> None:
    """Not at those that the plan was made for, whatever order they are in."""
    settings = dict(pipe.scheduler.config)
    deploy.apply(pipe, made_for(FlowMatchEulerDiscreteScheduler.from_config(settings)))
    call(pipe)  # warnings are errors
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    message = (
        r"^the plan was made for other noise levels: step 3 has sigma 0\.\d+ in the plan "
        r"\(FlowMatchEulerDiscreteScheduler\), 0\.\d+ in the run \(FlowMatchEulerDiscreteSched"
    )
    with pytest.warns(UserWarning, match=message):
        call(pipe)
    call(pipe)
    deploy.apply(pipe, PLAN)
    call(pipe)
    sigmas = [1.0, 0.8, 0.7, 0.1]
    deploy.apply(pipe, made_for(FlowMatchEulerDiscreteScheduler(shift=5.0)))
    with pytest.warns(UserWarning, match="step 3 has sigma"):
        call(pipe, sigmas=sigmas)


def test_resampled_plans_are_not_compared(pipe: Any) -> None:
    deploy.apply(pipe, made_for(FlowMatchEulerDiscreteScheduler(shift=9.0)), resample=True)
    call(pipe, 5)
    with pytest.warns(UserWarning, match="other noise levels"):
        call(pipe, 4)


def test_solvers_of_second_order_are_compared_by_the_step(pipe: Any) -> None:
    pipe.scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
    own = FlowMatchHeunDiscreteScheduler(shift=3.0)
    own.set_timesteps(4)
    sigmas = tuple(own.sigmas[:-1:2].tolist())
    deploy.apply(pipe, replace(PLAN, schedule=PlanSchedule("Heun", sigmas)))
    call(pipe)


def test_another_size_moves_dynamic_shifting() -> None:
    pipe = build("FluxPipeline")
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    call(pipe)
    sigmas = tuple(pipe.scheduler.sigmas[:4].tolist())
    deploy.apply(pipe, replace(PLAN, schedule=PlanSchedule("Euler", sigmas)))
    call(pipe)
    with pytest.warns(UserWarning, match="other noise levels"):
        call(pipe, height=128, width=128)
