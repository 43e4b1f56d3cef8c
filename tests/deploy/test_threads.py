"""Pipelines that run at once, each in a thread of its own."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from torch import Tensor

from tests.deploy.conftest import _BUILT, PLAN, REFERENCE, build, by_hand, call, traces
from tests.tiny import TINY, WARNINGS
from tmpdiff_bench import deploy
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.plan import PrecisionPlan

pytestmark = [pytest.mark.filterwarnings(entry) for entry in WARNINGS]

LOW = PrecisionPlan.uniform("w4a4", 4)


def slowly(pipe: Any) -> None:
    """Blocks take their time, so that threads take turns."""
    for block in pipe.transformer.transformer_blocks:
        block.register_forward_hook(lambda *_: time.sleep(0.001))


def at_once(pipes: Sequence[Any], times: int = 3) -> list[list[Tensor]]:
    """What each pipeline draws, call after call, while the others do."""
    ready = threading.Barrier(len(pipes))

    def draw(pipe: Any) -> list[Tensor]:
        ready.wait()
        return [call(pipe) for _ in range(times)]

    with ThreadPoolExecutor(len(pipes)) as pool:
        return list(pool.map(draw, pipes))


def sharing(pipe: Any, scheduler: Any = None) -> Any:
    """Another pipeline of the same modules; its tokenizers are its own, as they keep the padding of
    a call and can't serve two threads.
    """
    parts = pipe.components.items()
    own = {name: copy.deepcopy(part) for name, part in parts if name.startswith("tokenizer")}
    own["scheduler"] = scheduler or FlowMatchEulerDiscreteScheduler.from_config(
        pipe.scheduler.config
    )
    other = StableDiffusion3Pipeline(**{**pipe.components, **own})
    other.set_progress_bar_config(disable=True)
    _BUILT[other] = TINY["StableDiffusion3Pipeline"]
    return other


def test_two_pipelines() -> None:
    pipes = [build("StableDiffusion3Pipeline"), build("StableDiffusion3Pipeline")]
    expected = [by_hand(pipes[0], plan) for plan in (PLAN, LOW)]
    for pipe, plan in zip(pipes, (PLAN, LOW), strict=True):
        slowly(pipe)
        deploy.apply(pipe, plan)
    for found, drawn in zip(at_once(pipes), expected, strict=True):
        assert all(torch.equal(each, drawn) for each in found)


def test_two_pipelines_of_one_denoiser(pipe: Any) -> None:
    """And of one VAE and one set of text encoders; a third one has no plan."""
    slowly(pipe)
    plain, expected = call(pipe), [by_hand(pipe, plan) for plan in (PLAN, LOW)]
    pipes = [pipe, sharing(pipe), sharing(pipe)]
    before = traces(pipe)
    for each, plan in zip(pipes, (PLAN, LOW), strict=False):
        deploy.apply(each, plan)
    drawn = at_once(pipes[:2])
    for found, single in zip(drawn, expected, strict=True):
        assert all(torch.equal(each, single) for each in found)
    assert {**traces(pipe), "class": 0} == {**before, "class": 0}
    assert torch.equal(call(pipes[2]), plain)


def test_a_denoiser_that_another_thread_calls_by_itself(pipe: Any) -> None:
    """It waits for its turn, and is at no level."""
    slowly(pipe)
    arguments = {
        "hidden_states": torch.ones(1, 4, 8, 8, device=pipe.device),
        "encoder_hidden_states": torch.ones(1, 5, 64, device=pipe.device),
        "pooled_projections": torch.ones(1, 64, device=pipe.device),
        "timestep": torch.ones(1, device=pipe.device),
    }
    expected = pipe.transformer(**arguments).sample
    deploy.apply(pipe, LOW)
    drawn, running, found = call(pipe), threading.Event(), []

    def note(_pipe: Any, step: int, _timestep: Any, inputs: Any) -> Any:
        running.set()
        return inputs

    with ThreadPoolExecutor(1) as pool:
        planned = pool.submit(call, pipe, callback_on_step_end=note)
        running.wait()
        while not planned.done():
            found.append(pipe.transformer(**arguments).sample)
    assert torch.equal(planned.result(), drawn)
    assert len(found) > 1
    assert all(torch.equal(each, expected) for each in found)


def test_one_pipeline_in_two_threads(pipe: Any) -> None:
    """One call after the other: its scheduler is one."""
    slowly(pipe)
    deploy.apply(pipe, PLAN)
    expected = call(pipe)
    for found in at_once([pipe, pipe]):
        assert all(torch.equal(each, expected) for each in found)


def test_one_scheduler_of_two_pipelines(pipe: Any) -> None:
    slowly(pipe)
    other, running, refused = sharing(pipe, pipe.scheduler), threading.Event(), threading.Event()
    deploy.apply(pipe, PLAN)
    deploy.apply(other, REFERENCE)
    expected = call(pipe)

    def wait(_pipe: Any, step: int, _timestep: Any, inputs: Any) -> Any:
        running.set()
        refused.wait()
        return inputs

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(call, pipe, callback_on_step_end=wait)
        running.wait()
        with pytest.raises(UsageError, match="EulerDiscreteScheduler is in the middle of another"):
            call(other)
        refused.set()
    assert torch.equal(first.result(), expected)
    call(other)
    assert not {"step", "set_timesteps"} & vars(pipe.scheduler).keys()
