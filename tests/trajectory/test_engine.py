"""The prefix tree: every plan as one loop would run it, every shared prefix once."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trajectory.conftest import SHAPE, ToyBank, ToyPipeline
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.levels import LevelBank
from tmpdiff_bench.noise import initial_noise
from tmpdiff_bench.pipelines import Sd3Stepwise
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.trajectory import NonFiniteLatentsError, PrefixEngine, nodes_per_step

LEVELS = {"high": lambda x: -x, "mid": lambda x: -0.9 * x, "low": lambda x: -0.5 * x.sin()}


def singles(levels: tuple[str, ...], steps: int) -> list[PrecisionPlan]:
    return [PrecisionPlan.uniform(levels[0], steps)] + [
        PrecisionPlan.single(levels[0], level, step, steps)
        for level in levels[1:]
        for step in range(steps)
    ]


def loop(
    plan: PrecisionPlan, noise: torch.Tensor, prompts: list[str], steps: int | None = None
) -> torch.Tensor:
    """An independent loop: no tree, no batching, no shared code; the plan may be the start of one
    of more `steps`.
    """
    rows = []
    for x, prompt in zip(noise, prompts, strict=True):
        for level in plan:
            x = x + (LEVELS[level](x) + 0.01 * len(prompt)) / (steps or len(plan))
        rows.append(x)
    return torch.stack(rows)


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_equals_one_loop_per_plan(data: st.DataObject) -> None:
    """In several calls, at any batch size, within any memory that holds one path."""
    steps = data.draw(st.integers(1, 6))
    texts = st.lists(st.sampled_from(tuple(LEVELS)), min_size=steps, max_size=steps)
    calls = data.draw(st.lists(st.lists(texts, min_size=1, max_size=12), min_size=1, max_size=3))
    prompts = ["a" * n for n in data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=5))]
    max_batch = data.draw(st.integers(1, 9))
    noise = initial_noise([(str(i), 0) for i in range(len(prompts))], SHAPE)
    # a path and the siblings that wait beside it
    least = 2 + (len(LEVELS) - 1) * (steps - 1)
    memory = noise.nbytes * (least + data.draw(st.sampled_from([0, 1, 3, 10, 1000])))
    pipeline, bank = ToyPipeline(steps), ToyBank(LEVELS)
    spent: list[int] = []
    engine = PrefixEngine(
        pipeline,
        bank,
        pipeline.encode(prompts),
        noise,
        max_batch=max_batch,
        state_memory=memory,
        on_nfe=spent.append,
    )
    everything = []
    for call in calls:
        plans = [PrecisionPlan(tuple(p)) for p in call]
        everything += plans
        found = engine.evaluate(plans)
        assert found.shape == (len(plans), len(prompts), *SHAPE)
        for i, plan in enumerate(plans):
            assert torch.allclose(found[i], loop(plan, noise, prompts), atol=1e-6)
    assert engine.peak_memory <= memory
    assert engine.nfe == sum(spent)
    assert engine.plain_nfe == len(everything) * steps * len(prompts)
    nodes = sum(nodes_per_step(everything))
    assert engine.nfe >= nodes * len(prompts)
    if len(calls) == 1 or memory > noise.nbytes * 1000:
        assert engine.nfe == nodes * len(prompts)  # every prefix once
    assert max(n for f in bank.functions.values() for n in f.batches) <= max_batch


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_one_after_the_other(data: st.DataObject) -> None:
    """Every prefix once, one path of states at a time, in the order of the tree."""
    steps = data.draw(st.integers(1, 6))
    texts = st.lists(st.sampled_from(tuple(LEVELS)), min_size=steps, max_size=steps)
    plans = [PrecisionPlan(tuple(p)) for p in data.draw(st.lists(texts, min_size=1, max_size=12))]
    prompts = ["a" * n for n in data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=5))]
    noise = initial_noise([(str(i), 0) for i in range(len(prompts))], SHAPE)
    pipeline = ToyPipeline(steps)
    engine = PrefixEngine(
        pipeline,
        ToyBank(LEVELS),
        pipeline.encode(prompts),
        noise,
        state_memory=steps * noise.nbytes,
    )
    order = []
    for i, run in engine.each(plans):
        order.append(i)
        assert isinstance(run, torch.Tensor)
        for step in range(steps):
            way = PrecisionPlan(plans[i].levels[: step + 1])
            assert torch.allclose(run[step], loop(way, noise, prompts, steps), atol=1e-6)
    assert sorted(order) == list(range(len(plans)))
    assert order[0] == 0
    assert engine.nfe == sum(nodes_per_step(plans)) * len(prompts)
    assert engine.plain_nfe == len(plans) * steps * len(prompts)


def test_a_run_that_fails_takes_only_those_through_it_along() -> None:
    pipeline, bank = ToyPipeline(3), ToyBank({**LEVELS, "nan": lambda x: x * torch.nan})
    noise = initial_noise([("a", 0)], SHAPE)
    texts = ("high nan high", "high nan low", "high*3", "nan*3", "high*2 low")
    plans = [PrecisionPlan.parse(text) for text in texts]
    engine = PrefixEngine(pipeline, bank, pipeline.encode([""]), noise)
    runs = dict(engine.each(plans))
    failed = {i: str(run) for i, run in runs.items() if not isinstance(run, torch.Tensor)}
    assert set(failed) == {0, 1, 3}
    assert "step 1 at level nan" in failed[0] == failed[1]
    assert "step 0 at level nan" in failed[3]
    good = runs[4]
    assert isinstance(good, torch.Tensor)
    assert torch.allclose(good[-1], loop(plans[4], noise, [""]), atol=1e-6)


def test_other_plans_do_not_change_a_bit(untrained_sd3: StableDiffusion3Pipeline) -> None:
    """Rounding of activations makes much of the last bit, so there must be no difference at all."""
    stepwise = Sd3Stepwise(untrained_sd3, steps=4, guidance=4.0)
    bank = LevelBank(stepwise.denoiser, ("fp32", "w4a4"), stepwise.quantized)
    plans = [PrecisionPlan(p) for p in itertools.product(("fp32", "w4a4"), repeat=4)]
    prompts = ["a red circle", "two blue stars", "ein Ring"]
    noise = initial_noise([(p, 0) for p in prompts], stepwise.latent_shape)

    def runs(plans: list[PrecisionPlan]) -> dict[PrecisionPlan, torch.Tensor]:
        engine = PrefixEngine(stepwise, bank, stepwise.encode(prompts), noise)
        return {plans[i]: run for i, run in engine.each(plans) if isinstance(run, torch.Tensor)}

    together = runs(plans)
    assert len(together) == len(plans)
    for plan in plans[::3]:
        assert torch.equal(runs([plan])[plan], together[plan])


def test_memory_that_holds_no_path_is_refused() -> None:
    pipeline, bank = ToyPipeline(4), ToyBank(LEVELS)
    noise = initial_noise([("a", 0)], SHAPE)
    engine = PrefixEngine(
        pipeline, bank, pipeline.encode([""]), noise, state_memory=2 * noise.nbytes
    )
    plans = [PrecisionPlan(p) for p in itertools.product(LEVELS, repeat=4)]
    with pytest.raises(UsageError, match="--state-memory of 256 bytes is too little"):
        engine.evaluate(plans)


def test_a_stream_of_plans_goes_on_from_what_they_share() -> None:
    """One plan at a time costs what all at once cost, and a plan asked for again costs nothing."""
    steps = 10
    plans = singles(("high", "low"), steps)
    noise = initial_noise([("a", 0), ("b", 0)], SHAPE)
    pipeline, bank = ToyPipeline(steps), ToyBank(LEVELS)
    engine = PrefixEngine(pipeline, bank, pipeline.encode(["", ""]), noise)
    streamed = torch.cat([engine.evaluate([plan]) for plan in plans])
    assert engine.nfe == 2 * sum(nodes_per_step(plans))
    assert torch.equal(engine.evaluate(plans), streamed)
    assert engine.nfe == 2 * sum(nodes_per_step(plans))
    assert engine.plain_nfe == 2 * steps * 2 * len(plans)


def test_batches_are_filled() -> None:
    """All rows that need one step and level run together, up to the largest batch."""
    steps, samples = 6, 5
    pipeline, bank = ToyPipeline(steps), ToyBank(LEVELS)
    noise = initial_noise([(str(i), 0) for i in range(samples)], SHAPE)
    plans = [PrecisionPlan(p) for p in itertools.product(("high", "low"), repeat=steps)]
    engine = PrefixEngine(pipeline, bank, pipeline.encode([""] * samples), noise, max_batch=16)
    engine.evaluate(plans)
    sizes = iter(bank.functions["high"].batches)
    for step in range(steps):
        rows = samples * 2**step  # of each level
        batches = list(itertools.islice(sizes, math.ceil(rows / 16)))
        assert sum(batches) == rows
        assert max(batches) - min(batches) <= 1, "a small rest would be slow"
    assert next(sizes, None) is None


def test_equals_the_diffusers_pipeline(untrained_sd3: StableDiffusion3Pipeline) -> None:
    """Joint plans against the pipeline's own loop, the transformer swapped at each step."""
    stepwise = Sd3Stepwise(untrained_sd3, steps=4, guidance=4.0)
    bank = LevelBank(stepwise.denoiser, ("fp32", "w8a8", "w4a4"), stepwise.quantized)
    plans = [
        PrecisionPlan.parse(p)
        for p in ("fp32*4", "w4a4*4", "w8a8 fp32*3", "fp32 w4a4 w8a8 fp32", "fp32*3 w4a4")
    ]
    prompts = ["a red circle", "two blue stars"]
    noise = initial_noise([(p, 0) for p in prompts], stepwise.latent_shape)
    engine = PrefixEngine(stepwise, bank, stepwise.encode(prompts), noise, max_batch=3)
    found = engine.evaluate(plans)
    for plan, mine in zip(plans, found, strict=True):
        pipe = StableDiffusion3Pipeline(**untrained_sd3.components)
        pipe.set_progress_bar_config(disable=True)

        def swap(
            pipe: StableDiffusion3Pipeline,
            step: int,
            _: object,
            tensors: dict[str, torch.Tensor],
            plan: PrecisionPlan = plan,
        ) -> dict[str, torch.Tensor]:
            if step + 1 < len(plan):
                pipe.transformer = bank[plan[step + 1]]
            return tensors

        pipe.transformer = bank[plan[0]]
        expected = pipe(
            prompts,
            latents=noise.clone(),
            num_inference_steps=4,
            guidance_scale=4.0,
            max_sequence_length=stepwise.t5_length,
            output_type="latent",
            callback_on_step_end=swap,
        ).images
        # rounding of activations turns differences in the last bit into whole steps of a code
        tolerance = 1e-5 if set(plan) == {"fp32"} else 2e-2
        error = (mine - expected).abs().max() / expected.abs().max()
        assert error < tolerance, plan


def test_superposition_is_exact_on_a_linear_denoiser() -> None:
    """H1: with linear levels whose difference is a constant vector, joint errors are sums."""
    levels = {"high": lambda x: -x, "low": lambda x: -x + 0.1}
    steps = 8
    pipeline, bank = ToyPipeline(steps), ToyBank(levels)
    noise = initial_noise([("a", 0), ("b", 0)], SHAPE).double()
    alone = singles(("high", "low"), steps)
    joint = [PrecisionPlan.parse(p) for p in ("low*8", "high*2 low*4 high*2", "low high low*6")]
    engine = PrefixEngine(pipeline, bank, pipeline.encode(["", ""]), noise)
    finals = engine.evaluate([*alone, *joint]).double()
    deviations = finals[1 : steps + 1] - finals[0]
    for plan, final in zip(joint, finals[steps + 1 :], strict=True):
        low = [i for i, level in enumerate(plan) if level == "low"]
        assert torch.allclose(final - finals[0], deviations[low].sum(0), atol=1e-6)


def test_perturbation_reaches_every_node() -> None:
    seen = []

    def perturb(latents: torch.Tensor, step: int, level: str) -> torch.Tensor:
        seen.append((step, level))
        return latents + (1.0 if level == "low" else 0.0)

    pipeline, bank = ToyPipeline(2), ToyBank(LEVELS)
    noise = initial_noise([("a", 0)], SHAPE)
    plans = [PrecisionPlan.parse("high low")]
    engine = PrefixEngine(pipeline, bank, pipeline.encode([""]), noise, perturb=perturb)
    found = engine.evaluate(plans)
    middle = noise + LEVELS["high"](noise) / 2 + 1
    assert torch.allclose(found[0], middle + LEVELS["low"](middle) / 2)
    assert seen == [(0, "high"), (1, "low")]


def test_bad_input() -> None:
    pipeline, bank = ToyPipeline(3), ToyBank({**LEVELS, "nan": lambda x: x * torch.nan})
    noise, conditioning = initial_noise([("a", 0)], SHAPE), pipeline.encode([""])

    def run(*plans: str) -> None:
        engine = PrefixEngine(pipeline, bank, conditioning, noise)
        engine.evaluate([PrecisionPlan.parse(p) for p in plans])

    with pytest.raises(UsageError, match="no plans"):
        run()
    with pytest.raises(UsageError, match="plan high has 1 steps, others have 2"):
        run("high low", "high")
    with pytest.raises(UsageError, match="plans have 2 steps, the pipeline has 3"):
        run("high low")
    with pytest.raises(UsageError, match="unknown level 'lov': did you mean 'low'"):
        run("high lov high")
    with pytest.raises(NonFiniteLatentsError, match=re.escape("step 1 at level nan")):
        run("high nan high")
