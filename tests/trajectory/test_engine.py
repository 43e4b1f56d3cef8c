"""The engine on a toy with known arithmetic: loops by hand, bits, counts, memory and failures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.toy import LEVELS, NAN, SHAPE, ToyBank, by_hand, decoded, toy, toy_banks, toy_call
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.plan import PrecisionPlan, nodes_per_step
from tmpdiff_bench.trajectory.engine import PlanRun, PrefixEngine, depth_first
from tmpdiff_bench.trajectory.replay import NonFiniteLatentsError

NAMES = tuple(LEVELS)
PROMPTS = ("a ring", "two stars", "x")


def engine_of(
    steps: int, prompts: Sequence[str] = PROMPTS, levels: Any = LEVELS, **options: Any
) -> PrefixEngine:
    pipe = toy()
    return PrefixEngine(pipe, toy_banks(levels)(pipe), toy_call(prompts, steps), **options)


def runs_of(engine: PrefixEngine, plans: Sequence[PrecisionPlan]) -> list[PlanRun]:
    found = dict(engine.each(plans))
    runs = [found[i] for i in range(len(plans))]
    assert all(isinstance(run, PlanRun) for run in runs)
    return [run for run in runs if isinstance(run, PlanRun)]


def singles(steps: int, levels: int = 2) -> list[PrecisionPlan]:
    return PrecisionPlan.singles(NAMES[:levels], steps)


some_plans = st.integers(1, 5).flatmap(
    lambda steps: st.lists(
        st.lists(st.sampled_from(NAMES), min_size=steps, max_size=steps).map(
            lambda levels: PrecisionPlan(tuple(levels))
        ),
        min_size=1,
        max_size=6,
    )
)


@settings(max_examples=25, deadline=None)
@given(some_plans, st.integers(1, 4), st.sampled_from([0, 300, 2**30]))
def test_any_plans_in_any_order_are_loops_by_hand(
    plans: list[PrecisionPlan], max_batch: int, memory: int
) -> None:
    """One after the other and side by side, with and without memory, also when asked again."""
    steps = len(plans[0])
    engine = engine_of(steps, max_batch=max_batch, state_memory=max(1, memory))
    expected = [by_hand(LEVELS, plan, engine.call) for plan in plans]
    torch.testing.assert_close(engine.evaluate(plans), torch.stack(expected), atol=1e-5, rtol=0)
    for plan, run, final in zip(plans, runs_of(engine, plans), expected, strict=True):
        torch.testing.assert_close(run.final, final, atol=1e-5, rtol=0)
        assert torch.equal(run.path[-1], run.final)
        for step in range(steps):
            before = by_hand(LEVELS, plan.levels[: step + 1], engine.call)
            torch.testing.assert_close(run.path[step], before, atol=1e-5, rtol=0)
    assert engine.peak_memory <= max(1, memory)


@settings(max_examples=15, deadline=None)
@given(some_plans)
def test_a_run_does_not_depend_on_others_by_a_bit(plans: list[PrecisionPlan]) -> None:
    together = runs_of(engine_of(len(plans[0])), plans)
    for plan, run in zip(plans, together, strict=True):
        [alone] = runs_of(engine_of(len(plan)), [plan])
        assert torch.equal(alone.final, run.final)
        assert torch.equal(alone.path, run.path)
        one = engine_of(len(plan), max_batch=len(PROMPTS))
        assert torch.equal(one.evaluate([plan])[0], run.final)


def test_evaluations_are_those_of_the_tree() -> None:
    steps, n = 6, len(PROMPTS)
    reference = PrecisionPlan.uniform("fp32", steps)
    for run in (PrefixEngine.evaluate, lambda engine, plans: list(engine.each(plans))):
        for low in (1, 2):  # low levels
            engine = engine_of(steps)
            run(engine, [reference, *singles(steps, 1 + low)])
            assert engine.nfe == n * (steps + low * steps * (steps + 1) // 2)
            assert engine.plain_nfe == n * steps * (1 + low * steps)
            bank = engine.banks["transformer"]
            assert isinstance(bank, ToyBank)
            assert sum(sum(rows) for rows in bank.batches.values()) == engine.nfe
        engine = engine_of(4)
        everything = [PrecisionPlan(levels) for levels in product(NAMES, repeat=4)]
        run(engine, everything)
        assert engine.nfe == n * (3**5 - 3) // 2
        run(engine, everything[:20])
        assert engine.plain_nfe == n * 4 * (3**4 + 20)


def test_guidance_counts_both_passes() -> None:
    pipe = toy()
    call = toy_call(PROMPTS, 3, guidance_scale=3.0)
    engine = PrefixEngine(pipe, toy_banks(LEVELS)(pipe), call)
    plan = PrecisionPlan.parse("w4a4 fp32 w8a8")
    final = engine.evaluate([plan])[0]
    torch.testing.assert_close(final, by_hand(LEVELS, plan, call), atol=1e-5, rtol=0)
    assert engine.nfe_per_step == [2, 2, 2]
    assert engine.nfe == 2 * 3 * len(PROMPTS)


def test_what_is_kept_serves_later_plans() -> None:
    engine = engine_of(4, max_batch=len(PROMPTS))
    first, second = PrecisionPlan.parse("fp32*3 w4a4"), PrecisionPlan.parse("fp32*2 w4a4*2")
    engine.evaluate([first])
    engine.evaluate([second])
    assert engine.nfe == len(PROMPTS) * sum(nodes_per_step([first, second]))
    engine.evaluate([first, second])
    assert engine.nfe == len(PROMPTS) * sum(nodes_per_step([first, second]))


def test_side_by_side_runs_share_calls() -> None:
    """A sample each, in batches of as many as are allowed."""
    engine = engine_of(5, ["a ring"], max_batch=8)
    plans = [PrecisionPlan(levels) for levels in product(NAMES[:2], repeat=5)]
    found = engine.evaluate(plans)
    bank = engine.banks["transformer"]
    assert isinstance(bank, ToyBank)
    batches = [rows for level in bank.batches.values() for rows in level]
    assert sum(batches) == engine.nfe == 2**6 - 2
    assert 2 < max(batches) <= 8
    expected = torch.stack([by_hand(LEVELS, plan, engine.call) for plan in plans])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_encoders_run_once_for_all_plans() -> None:
    pipe = toy()
    engine = PrefixEngine(pipe, toy_banks(LEVELS)(pipe), toy_call(PROMPTS, 3))
    list(engine.each(singles(3)))
    assert pipe.text_encoder.calls == 1


def test_images_are_decoded_by_the_pipeline() -> None:
    engine = engine_of(3)
    [(_, run)] = engine.each([PrecisionPlan.parse("fp32 w4a4 fp32")])
    assert isinstance(run, PlanRun)
    spent = engine.nfe
    torch.testing.assert_close(run.images(), decoded(run.final), atol=1e-6, rtol=0)
    assert engine.nfe == spent


def test_what_diverges_is_named_and_others_go_on() -> None:
    engine = engine_of(3, levels={**LEVELS, "w4a4": NAN})
    bad, good = PrecisionPlan.parse("fp32 w4a4 fp32"), PrecisionPlan.parse("fp32 w8a8 fp32")
    worse = PrecisionPlan.parse("fp32 w4a4 w8a8")
    found = dict(engine.each([bad, good, worse]))
    for i in (0, 2):
        assert isinstance(found[i], NonFiniteLatentsError)
        assert "step 1 at level w4a4 produced non-finite latents" in str(found[i])
    assert isinstance(found[1], PlanRun)
    with pytest.raises(NonFiniteLatentsError, match="step 1 at level w4a4"):
        engine.evaluate([good, bad])


def test_perturbed_latents() -> None:
    """Of low steps only, and of no step that others share."""

    def perturb(latents: Tensor, step: int, level: str) -> Tensor:
        return latents if level == "fp32" else latents + 0.5 * (step + 1)

    engine = engine_of(2, perturb=perturb)
    plan = PrecisionPlan.parse("fp32 w8a8")
    final = engine.evaluate([plan])[0]
    x = by_hand(LEVELS, ["fp32"], engine.call)
    lengths = torch.tensor([[[[0.01 * len(prompt)]]] for prompt in PROMPTS])
    expected = x + (LEVELS["w8a8"](x + 1.0) + lengths) / 2
    torch.testing.assert_close(final, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("plans", "message"),
    [
        (["fp32*3", "fp32*2"], "steps"),
        (["fp32*2"], "plans have 2 steps, the pipeline's schedule 3"),
        (["fp32*2 w4a5"], "unknown level 'w4a5': did you mean 'w4a4'"),
    ],
)
def test_plans_that_do_not_fit(plans: list[str], message: str) -> None:
    engine = engine_of(3)
    with pytest.raises(UsageError, match=message):
        engine.evaluate([PrecisionPlan.parse(text) for text in plans])
    assert engine.nfe == 0


def test_a_batch_of_nothing() -> None:
    with pytest.raises(UsageError, match="--max-batch is 0: at least 1 is needed"):
        engine_of(3, max_batch=0)


def test_the_first_plan_comes_first_and_relatives_follow() -> None:
    texts = ["b a", "a b", "b b", "c c", "a a"]
    order = depth_first([PrecisionPlan.parse(text) for text in texts])
    assert [str(plan) for plan in order] == ["b a", "b*2", "a b", "a*2", "c*2"]


def test_shapes() -> None:
    engine = engine_of(2)
    plans = [PrecisionPlan.parse("fp32 w4a4"), PrecisionPlan.parse("w4a4*2")]
    assert engine.evaluate(plans).shape == (2, len(PROMPTS), *SHAPE)
    [run, _] = runs_of(engine, plans)
    assert run.path.shape == (2, len(PROMPTS), *SHAPE)
    assert run.final.dtype == torch.float32
