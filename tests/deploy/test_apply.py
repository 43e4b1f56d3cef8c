"""`apply`, `describe` and `remove`, and the calls in between."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    FlowMatchHeunDiscreteScheduler,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3Pipeline,
)
from torch import nn

from tests.deploy.conftest import PLAN, REFERENCE, build, by_hand, call, traces
from tests.tiny import TINY, WARNINGS
from tmpdiff_bench import deploy
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.levels import LevelBank
from tmpdiff_bench.pipelines.layers import quantized_layers
from tmpdiff_bench.plan import PrecisionPlan

pytestmark = [pytest.mark.filterwarnings(entry) for entry in WARNINGS]


def watched(pipe: Any, layer: str = "transformer_blocks.0.attn.to_q") -> list[bool]:
    """For each call of the transformer from now on, whether a layer stands in its own place."""
    seen: list[bool] = []
    own = pipe.transformer.get_submodule(layer)

    def note(module: nn.Module, _args: Any) -> None:
        seen.append(module.get_submodule(layer) is own)

    pipe.transformer.register_forward_pre_hook(note)
    return seen


def test_calls_repeat_and_plans_are_replaced(pipe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Levels at hand are not made again; others are, and memory is told before it is taken."""
    deploy.apply(pipe, PLAN)
    names = quantized_layers(pipe.transformer)
    told = LevelBank.memory(pipe.transformer, ("w4a4", "w8a8"), names)
    assert capsys.readouterr().err == f"{told}\n"
    first = call(pipe)
    assert torch.equal(call(pipe), first)
    deploy.apply(pipe, PrecisionPlan.uniform("w4a4", 4))
    assert not torch.equal(call(pipe), first)
    deploy.apply(pipe, PLAN)
    assert torch.equal(call(pipe), first)
    assert capsys.readouterr().err == ""
    deploy.apply(pipe, PrecisionPlan.uniform("w4a8", 4))
    call(pipe)
    assert "w4a8" in capsys.readouterr().err


def test_other_layers_than_before_take_effect(pipe: Any) -> None:
    """As does another residency."""
    low, some = PrecisionPlan.uniform("w4a4", 4), ["transformer_blocks.1.attn.to_k"]
    expected = {None: by_hand(pipe, low), "some": by_hand(pipe, low, layers=lambda _: tuple(some))}
    deploy.apply(pipe, low)
    assert torch.equal(call(pipe), expected[None])
    for residency in ("resident", "offload", "derive"):
        deploy.apply(pipe, low, quantized=some, residency=residency)
        assert torch.equal(call(pipe), expected["some"])
        assert f"quantized layers: 1; weights: 0.5 MB ({residency})" in deploy.describe(pipe)
    deploy.apply(pipe, low)
    assert torch.equal(call(pipe), expected[None])


@pytest.mark.parametrize(
    ("quantized", "message"),
    [
        ([], "quantized= names no layers"),
        (["transformer_blocks.0.attn.to_g"], "unknown layer 'transformer_blocks.0.attn.to_g'"),
        (["transformer_blocks.0"], "levels change linear and convolution layers only"),
    ],
)
def test_names_of_no_layers_are_refused(pipe: Any, quantized: list[str], message: str) -> None:
    """A plan that is there goes on."""
    deploy.apply(pipe, PLAN)
    expected = call(pipe)
    with pytest.raises(UsageError, match=message):
        deploy.apply(pipe, PLAN, quantized=quantized)
    assert torch.equal(call(pipe), expected)


def test_bad_plans_and_pipelines_are_refused(pipe: Any) -> None:
    before = traces(pipe)
    with pytest.raises(UsageError, match="unknown level 'w4a5'"):
        deploy.apply(pipe, PrecisionPlan.parse("fp32 w4a5"))
    with pytest.raises(UsageError, match=r"native:w4a4 can't run on"):
        deploy.apply(pipe, PrecisionPlan.parse("fp32 native:w4a4"))
    with pytest.raises(UsageError, match=r"w4a4\+lr8 scales its inputs by how large they get"):
        deploy.apply(pipe, PrecisionPlan.parse("fp32 w4a4+lr8"))
    with pytest.raises(UsageError, match="unknown residency 'resdent'"):
        deploy.apply(pipe, PLAN, residency="resdent")
    with pytest.raises(UsageError, match="object has no denoiser"):
        deploy.apply(object(), PLAN)
    assert traces(pipe) == before
    for function in (deploy.remove, deploy.describe):
        with pytest.raises(UsageError, match="this pipeline runs no plan"):
            function(pipe)


def test_what_runs_is_described(pipe: Any) -> None:
    deploy.apply(pipe, PLAN, levels=["w8a8", "bf16"])
    call(pipe)
    plan, layers, steps = deploy.describe(pipe).splitlines()
    assert plan == "plan: fp32 w4a4 w8a8 w4a4 (4 steps)"
    names = quantized_layers(pipe.transformer)
    weights = sum(pipe.transformer.get_submodule(name).weight.nbytes for name in names)
    assert layers.startswith(f"transformer: quantized layers: {len(names)}; weights: ")
    assert f"besides w8a8 {weights / 1e6:.1f} MB, bf16 " in layers
    assert steps == "steps run so far: 4"


def test_two_experts_are_described() -> None:
    pipe = build("WanPipeline-two-experts")
    deploy.apply(pipe, PLAN)
    lines = deploy.describe(pipe).splitlines()
    assert [line.partition(":")[0] for line in lines[1:3]] == ["transformer", "transformer_2"]


class StopError(Exception):
    """Raised by the tests."""


@pytest.mark.parametrize("error", [StopError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["callback", "block", "layer", "scheduler"])
def test_a_call_that_ends_early_leaves_nothing(
    pipe: Any, error: type[BaseException], where: str
) -> None:
    call(pipe)
    before = traces(pipe)
    deploy.apply(pipe, PLAN)
    expected = call(pipe)
    calls = 0

    def fail(*_: Any, **__: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:  # at a low step
            raise error

    options: dict[str, Any] = {}
    if where == "callback":
        options["callback_on_step_end"] = lambda _pipe, _step, _time, inputs: fail() or inputs
    elif where == "scheduler":
        step = pipe.scheduler.step
        pipe.scheduler.step = lambda *args, **kwargs: fail() or step(*args, **kwargs)
    else:
        block = pipe.transformer.transformer_blocks[1]
        module = block if where == "block" else block.attn.to_k
        handle = module.register_forward_pre_hook(fail)
    with pytest.raises(error):
        call(pipe, **options)
    if where == "scheduler":
        del pipe.scheduler.step
    if where in ("block", "layer"):
        handle.remove()
    assert {**traces(pipe), "class": 0} == {**before, "class": 0}
    assert torch.equal(call(pipe), expected)
    deploy.remove(pipe)
    assert traces(pipe) == before


def test_an_interrupted_call_is_followed_by_a_whole_one(pipe: Any) -> None:
    deploy.apply(pipe, PLAN)
    expected = call(pipe)
    seen = watched(pipe)

    def stop(own: Any, step: int, _timestep: Any, inputs: Any) -> Any:
        own._interrupt = step == 1
        return inputs

    call(pipe, callback_on_step_end=stop)
    assert seen == [True, False]
    assert torch.equal(call(pipe), expected)


def test_callbacks_of_the_user_are_kept(pipe: Any) -> None:
    seen: list[int] = []

    def note(_pipe: Any, step: int, _timestep: Any, inputs: Any) -> Any:
        seen.append(step)
        return {"latents": inputs["latents"] + 0.1}

    deploy.apply(pipe, REFERENCE)
    found = call(pipe, callback_on_step_end=note)
    deploy.remove(pipe)
    assert torch.equal(call(pipe, callback_on_step_end=note), found)
    assert seen == [0, 1, 2, 3] * 2


def test_a_replaced_scheduler_or_denoiser_is_the_one_that_runs(pipe: Any) -> None:
    deploy.apply(pipe, PLAN)
    call(pipe)
    pipe.scheduler = FlowMatchHeunDiscreteScheduler(shift=2.0)
    heun = call(pipe)
    other = copy.deepcopy(pipe.transformer)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.9)
    pipe.transformer = other
    both = call(pipe)
    deploy.remove(pipe)
    assert torch.equal(both, by_hand(pipe, PLAN))
    plain = build("StableDiffusion3Pipeline")
    plain.scheduler = FlowMatchHeunDiscreteScheduler(shift=2.0)
    assert torch.equal(heun, by_hand(plain, PLAN))


def test_a_call_of_the_denoiser_by_itself_is_the_users(pipe: Any) -> None:
    arguments = {
        "hidden_states": torch.ones(1, 4, 8, 8, device=pipe.device),
        "encoder_hidden_states": torch.ones(1, 5, 64, device=pipe.device),
        "pooled_projections": torch.ones(1, 64, device=pipe.device),
        "timestep": torch.ones(1, device=pipe.device),
    }
    with torch.no_grad():
        expected = pipe.transformer(**arguments).sample
        deploy.apply(pipe, PrecisionPlan.uniform("w4a4", 4))
        call(pipe)
        assert torch.equal(pipe.transformer(**arguments).sample, expected)


def test_pipelines_made_of_its_parts_have_no_plan(pipe: Any) -> None:
    plain = call(build("StableDiffusion3Pipeline"))
    deploy.apply(pipe, PLAN)
    pickled = pickle.dumps(pipe)  # after its first call transformers can't be, with or without us
    planned = call(pipe)
    pickle.dumps(pipe.transformer)
    others = [
        StableDiffusion3Pipeline.from_pipe(pipe),
        StableDiffusion3Pipeline(**pipe.components),
        pickle.loads(pickled),
        copy.deepcopy(pipe),
    ]
    for other in others:
        other.set_progress_bar_config(disable=True)
        tiny = TINY["StableDiffusion3Pipeline"]
        drawn = other(
            **tiny.each(2),
            **tiny.call,
            generator=[torch.Generator().manual_seed(seed) for seed in range(2)],
            num_inference_steps=4,
            output_type="latent",
        ).images
        assert torch.equal(drawn.cpu(), plain)
        with pytest.raises(UsageError, match="this pipeline runs no plan"):
            deploy.remove(other)
    assert torch.equal(call(pipe), planned)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    other = StableDiffusion3Img2ImgPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    deploy.apply(other, PrecisionPlan.uniform("w4a4", 4))  # each has its own
    other("a star", image=image, num_inference_steps=4, strength=0.5, output_type="latent")
    assert torch.equal(call(pipe), planned)


def test_a_pipeline_that_is_gone_leaves_its_class_as_it_was() -> None:
    pipe = build("SanaPipeline")
    kind = type(pipe)
    own = kind.__call__
    deploy.apply(pipe, REFERENCE)
    assert kind.__call__ is not own
    del pipe
    gc.collect()
    assert kind.__call__ is own


def test_a_class_that_somebody_else_wraps_too(pipe: Any) -> None:
    """Whoever comes and goes first, a plan is never passed by."""
    kind, plain = type(pipe), call(pipe)
    own = kind.__call__
    deploy.apply(pipe, PLAN)
    planned, ours = call(pipe), kind.__call__

    def theirs(*args: Any, **kwargs: Any) -> Any:
        return ours(*args, **kwargs)

    try:
        kind.__call__ = theirs
        assert torch.equal(call(pipe), planned)
        deploy.remove(pipe)
        assert torch.equal(call(pipe), plain)
        kind.__call__ = own  # as it was before us
        deploy.apply(pipe, PLAN)
        assert torch.equal(call(pipe), planned)
        deploy.remove(pipe)
        assert kind.__call__ is own
    finally:
        kind.__call__ = own


def test_levels_of_the_own_dtype_are_the_denoiser_itself(pipe: Any) -> None:
    pipe.to(torch.bfloat16)
    deploy.apply(pipe, PrecisionPlan.parse("bf16*2 fp16 fp32"))
    seen = watched(pipe)
    call(pipe)
    assert seen == [True, True, False, True]


def test_inference_mode(pipe: Any) -> None:
    """Whole, and weights that were made in it."""
    expected = by_hand(pipe, PLAN)
    with torch.inference_mode():
        deploy.apply(pipe, PLAN)
        assert torch.equal(call(pipe), expected)
        deploy.remove(pipe)
        for parameter in pipe.transformer.parameters():
            parameter.data = parameter.data.clone()
        own = build("StableDiffusion3Pipeline")
        deploy.apply(own, PLAN)
        assert torch.equal(call(own), expected)
        own.transformer.transformer_blocks[1].attn.to_k.weight.neg_()
        changed = call(own)
    deploy.apply(pipe, PLAN)
    assert torch.equal(call(pipe), expected)
    assert torch.equal(call(own), changed)
    assert not torch.equal(changed, expected)


def test_writing_past_autograd_counts_at_the_next_call(pipe: Any) -> None:
    """Of small weights, every element."""
    deploy.apply(pipe, PLAN)
    before = call(pipe)
    weight = pipe.transformer.transformer_blocks[1].attn.to_k.weight
    changes: list[Callable[[], Any]] = [
        lambda: weight.data.copy_(weight.data.flip(0)),
        lambda: weight.data.copy_(weight.data.roll(1, 1)),
        lambda: weight.data[3, 5:6].add_(1.0),
    ]
    for change in changes:
        change()
        found = call(pipe)
        assert not torch.equal(found, before)
        before = found
    deploy.remove(pipe)
    assert torch.equal(before, by_hand(pipe, PLAN))


def test_all_denoisers_run_the_plan() -> None:
    """Of two experts, each at the steps that are its own."""
    pipe = build("WanPipeline-two-experts")
    single = REFERENCE.replace(3, "w4a4")
    expected = by_hand(pipe, single)
    seen = []
    for place in ("transformer", "transformer_2"):
        module = getattr(pipe, place)
        module.register_forward_pre_hook(lambda *_, place=place: seen.append(place))
    deploy.apply(pipe, single)
    assert torch.equal(call(pipe), expected)
    assert len(set(seen)) == 2


def test_sequential_passes_of_a_step_are_at_one_level(pipe: Any) -> None:
    """Skip-layer guidance calls the network twice a step, one call after the other."""
    options: dict[str, Any] = {"skip_guidance_layers": [1], "skip_layer_guidance_start": -1.0}
    deploy.apply(pipe, PLAN)
    seen = watched(pipe)
    call(pipe, skip_layer_guidance_stop=1.0, **options)
    assert seen == [level == "fp32" for level in PLAN for _ in range(2)]
