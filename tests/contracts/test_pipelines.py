"""The contract of DESIGN §3 and §5, for every class: what is recorded is what the pipeline's own
call gives, and a replayed run is a run, bit for bit.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPanoramaPipeline, StableDiffusionSAGPipeline

from tests.deploy.conftest import build, by_hand, call, denoisers, traces
from tests.tiny import TINY, WARNINGS, each
from tests.tiny.unet import ddim, sd_parts
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.pipelines.calls import Call
from tmpdiff_bench.plan import PrecisionPlan, nodes_per_step
from tmpdiff_bench.trajectory.engine import PlanRun, PrefixEngine, level_banks

pytestmark = [pytest.mark.filterwarnings(entry) for entry in WARNINGS]
LEVELS = ("fp32", "w4a4", "w8a8")


def engine_of(name: str, pipe: Any, **options: Any) -> PrefixEngine:
    """Of the samples that `call` draws."""
    tiny = TINY[name]
    n = 2 if tiny.batches else 1
    asked = Call({**tiny.call, "num_inference_steps": tiny.steps}, tiny.each(n), range(n))
    options = {"max_batch": n, **options}
    return PrefixEngine(pipe, level_banks(pipe, LEVELS), asked, **options)


def run(pipe: Any, name: str) -> torch.Tensor:
    """The pipeline's own call; of a batch, texts stand in lists as the prompts do."""
    tiny = TINY[name]
    texts: dict[str, Any] = {
        k: v for k, v in tiny.call.items() if "prompt" in k and isinstance(v, str)
    }
    lists: Any = {k: [v] * 2 for k, v in texts.items()} if tiny.batches else {}
    return call(pipe, **lists)


def plans_of(steps: int) -> tuple[list[PrecisionPlan], list[PrecisionPlan]]:
    """All single plans at one level, and two joint ones."""
    reference = PrecisionPlan.uniform("fp32", steps)
    singles = [reference.replace(step, "w4a4") for step in range(steps)]
    joint = [singles[0].replace(steps - 1, "w8a8"), PrecisionPlan.uniform("w4a4", steps)]
    return singles, joint


@pytest.mark.parametrize("name", each(sorted(TINY)))
def test_recorded_runs_are_the_pipelines_own(name: str) -> None:
    tiny, pipe = TINY[name], build(name)
    singles, joint = plans_of(tiny.steps)
    reference = PrecisionPlan.uniform("fp32", tiny.steps)
    plain, before = run(pipe, name), traces(pipe)
    engine = engine_of(name, pipe)
    order = [reference, *random.Random(name).sample([*singles, *joint], len(singles) + len(joint))]
    runs: dict[PrecisionPlan, Any] = {order[i]: run for i, run in engine.each(order)}
    assert traces(pipe) == before, "nothing is left"
    chosen = (singles[-1], singles[len(singles) // 2], *joint)
    by_hands = {plan: by_hand(pipe, plan, lambda p: run(p, name)) for plan in chosen}
    for plan, expected in {reference: plain, **by_hands}.items():
        if tiny.latent:
            assert torch.equal(runs[plan].final, expected.float())
        elif expected.ndim == 4:
            drawn = engine.images(plan).permute(0, 2, 3, 1)
            assert torch.equal(drawn, expected.float())
    assert len({run.final.numpy().tobytes() for run in runs.values()}) > len(singles) // 2
    # every prefix once, and what it would have been otherwise
    ran = [PrecisionPlan(plan.levels[engine.first :]) for plan in order]
    each, n = engine.nfe_per_step[engine.first :], len(engine.call)
    assert all(each)
    assert engine.nfe == n * int(np.dot(nodes_per_step(ran), each))
    assert engine.plain_nfe == n * len(order) * sum(each)
    # a fresh engine that shares nothing gives the same bits as one that replays
    fresh = engine_of(name, pipe)
    assert torch.equal(fresh.evaluate([joint[0]])[0], runs[joint[0]].final)
    assert fresh.nfe == n * sum(each)
    assert traces(pipe) == before


# a module beside the denoiser in the loop; samples in rows that can't be told apart; one sample
ALONE = ("ControlNet", "Latte", "DiT", "WanImageToVideo", "WanVACE")


@pytest.mark.parametrize("name", each(sorted(TINY)))
def test_plans_side_by_side_are_those_run_alone(name: str) -> None:
    tiny, pipe = TINY[name], build(name)
    singles, joint = plans_of(tiny.steps)
    plans = [PrecisionPlan.uniform("fp32", tiny.steps), *singles, *joint]
    calls: tuple[list[int], list[int]] = [], []
    alone = engine_of(name, pipe, on_nfe=calls[0].append)
    runs = dict(alone.each(plans))
    before = traces(pipe)
    engine = engine_of(name, pipe, on_nfe=calls[1].append, max_batch=3 * len(alone.call))
    finals = engine.evaluate(plans)
    assert traces(pipe) == before
    for i, final in enumerate(finals):
        run = runs[i]
        assert isinstance(run, PlanRun)
        size = run.final.abs().max()
        # a difference in the last bit may turn into one of a whole code
        assert (final - run.final).abs().max() <= (0.05 if i else 1e-3) * size
    if not any(word in name for word in ALONE):
        assert engine.nfe == alone.nfe
        assert len(calls[1]) < len(calls[0]), "most are made together"


@pytest.mark.parametrize("name", each(sorted(TINY)))
def test_evaluations_are_those_of_the_denoisers(name: str) -> None:
    """Counted by hooks: calls of an engine against calls of the pipeline, all singles of two steps
    less than all.
    """
    tiny, pipe = TINY[name], build(name)
    counts = [0]

    def count(*_: Any) -> None:
        counts[0] += 1

    hooks = [module.register_forward_pre_hook(count) for module in denoisers(pipe).values()]
    call(pipe)
    plain, counts[0] = counts[0], 0
    engine = engine_of(name, pipe)
    reference = PrecisionPlan.uniform("fp32", tiny.steps)
    engine.evaluate([reference])
    assert counts[0] == plain
    engine.evaluate([reference.replace(tiny.steps - 1, "w4a4"), reference])
    assert plain < counts[0] < 2 * plain or tiny.steps - engine.first == 1
    for hook in hooks:
        hook.remove()


def test_images_are_those_of_the_pipeline() -> None:
    name = "StableDiffusion3Pipeline"
    pipe = build(name)
    engine = engine_of(name, pipe)
    plan = PrecisionPlan.parse("fp32 w4a4 fp32 w8a8")
    [(_, run)] = engine.each([plan])
    assert isinstance(run, PlanRun)
    assert isinstance(run, PlanRun)
    spent = engine.nfe
    drawn = run.images().permute(0, 2, 3, 1)
    assert engine.nfe == spent, "decoded from what is known"
    expected = by_hand(pipe, plan, lambda p: call(p, output_type="np"))
    assert torch.equal(drawn, expected)


@pytest.mark.parametrize(
    "name", ["StableDiffusion3Pipeline", "StableDiffusionPipeline-EulerAncestral", "WanPipeline"]
)
def test_encoders_may_run_before_all_else(name: str) -> None:
    """With denoisers that are only shapes yet, and encoders that are gone afterwards."""
    pipe = build(name)
    expected = call(pipe)
    place, denoiser = next(iter(denoisers(pipe).items()))
    setattr(pipe, place, build(name).components[place].to("meta"))
    memos: dict[Any, Any] = {}
    tiny = TINY[name]
    asked = Call({**tiny.call, "num_inference_steps": tiny.steps}, tiny.each(2), range(2))
    PrefixEngine(pipe, {}, asked, max_batch=2, memos=memos).encode()
    setattr(pipe, place, denoiser)
    for part in [x for x in vars(pipe) if x.startswith("text_encoder")]:
        for parameter in getattr(pipe, part).parameters():
            parameter.data = parameter.data.new_empty(0)
    engine = PrefixEngine(pipe, level_banks(pipe, LEVELS), asked, max_batch=2, memos=memos)
    assert torch.equal(engine.evaluate([PrecisionPlan.uniform("fp32", tiny.steps)])[0], expected)


def test_randomness_from_elsewhere_is_named() -> None:
    pipe = build("StableDiffusion3Pipeline")
    pipe.scheduler = type(pipe.scheduler).from_config(
        pipe.scheduler.config, stochastic_sampling=True
    )
    engine = engine_of("StableDiffusion3Pipeline", pipe)
    with pytest.raises(UsageError, match="global random state, beside the generators"):
        engine.evaluate([PrecisionPlan.uniform("fp32", 4)])


def test_a_loop_that_looks_into_its_denoiser_is_not_recorded() -> None:
    """Self-attention guidance reads attention maps that its processors leave behind."""
    pipe = StableDiffusionSAGPipeline(**sd_parts(ddim()))
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 4, "height": 16, "width": 16, "sag_scale": 0.5}
    asked = Call(call, {"prompt": ["a red circle"]}, range(1))
    engine = PrefixEngine(pipe, level_banks(pipe, LEVELS), asked, max_batch=1)
    plan = PrecisionPlan.parse("fp32*3 w4a4")
    engine.evaluate([plan])
    with pytest.raises(UsageError, match="reads more of its denoiser than what it returns"):
        engine.evaluate([plan.replace(2, "w4a4"), plan.replace(3, "w8a8")])


def test_a_loop_of_several_views_gets_one_line() -> None:
    """MultiDiffusion takes a step of its scheduler for each view, and puts copies of its attributes
    back in between.
    """
    pipe = StableDiffusionPanoramaPipeline(**sd_parts(ddim()))
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 4, "height": 16, "width": 576}
    asked = Call(call, {"prompt": ["a red circle"]}, range(1))
    engine = PrefixEngine(pipe, level_banks(pipe, LEVELS), asked, max_batch=1)
    with pytest.raises(UsageError, match="its steps can't be told"):
        engine.evaluate([PrecisionPlan.uniform("fp32", 4)])
    assert not traces(pipe)["scheduler"], "nothing is left"


def test_a_loop_without_steps_gets_one_line() -> None:
    pipe = build("StableDiffusion3Pipeline")

    class Other(type(pipe)):  # type: ignore[misc]
        def __call__(self, num_inference_steps: int, generator: Any, **_: Any) -> Any:
            self.scheduler.set_timesteps(num_inference_steps, device=self.device)
            x = torch.ones(2, 4, 8, 8, device=self.device)
            states = x.new_zeros(2, 4, self.transformer.config.joint_attention_dim)
            pooled = x.new_zeros(2, self.transformer.config.pooled_projection_dim)
            for timestep in self.scheduler.timesteps:
                x = x - 0.1 * self.transformer(x, states, pooled, timestep.expand(2))[0]
            return (x,)

    pipe.__class__ = Other
    engine = engine_of("StableDiffusion3Pipeline", pipe)
    with pytest.raises(UsageError, match=r"not the step of its scheduler") as caught:
        engine.evaluate([PrecisionPlan.uniform("fp32", 4)])
    assert "\n" not in str(caught.value)
