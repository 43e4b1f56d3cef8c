"""A pipeline with a plan: against itself without one, and against the prefix engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
)
from diffusers.models.modeling_utils import ModelMixin
from hypothesis import given
from hypothesis import strategies as st

from tests.deploy.conftest import PROMPTS, call
from tmpdiff_bench import deploy
from tmpdiff_bench.deploy.position import resampled, step_of, steps_of
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.levels import LevelBank
from tmpdiff_bench.noise import initial_noise
from tmpdiff_bench.pipelines import Sd3Stepwise
from tmpdiff_bench.pipelines.quantized import quantized_layers
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.trajectory import PrefixEngine

MIXED = PrecisionPlan.parse("fp32 w4a4*2 w8a8")


class Watch:
    """Notes which level's module each call of the network went to."""

    def __init__(self, pipe: Any) -> None:
        self.levels: list[str] = []
        self._handles = []
        for level, module in pipe.transformer._made.items():

            def note(_module: Any, _args: Any, level: str = level) -> None:
                self.levels.append(level)

            self._handles.append(module.register_forward_pre_hook(note))

    def stop(self) -> list[str]:
        for handle in self._handles:
            handle.remove()
        return self.levels


def test_the_reference_plan_is_the_untouched_pipeline(pipe: Any) -> None:
    expected = call(pipe)
    deploy.apply(pipe, PrecisionPlan.uniform("fp32", 4), levels=("w4a4",))
    assert torch.equal(call(pipe), expected)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(
    ("scheduler", "guidance"),
    [
        (FlowMatchEulerDiscreteScheduler(shift=3.0), 4.0),
        (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), 1.0),
        (FlowMatchHeunDiscreteScheduler(shift=3.0), 4.0),
        (
            DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
            1.0,
        ),
    ],
    ids=["euler", "euler-unguided", "heun", "dpm-unguided"],
)
def test_any_plan_equals_the_engine(pipe: Any, scheduler: Any, guidance: float) -> None:
    pipe.scheduler = scheduler
    stepwise = Sd3Stepwise(pipe, steps=3, guidance=guidance)
    bank = LevelBank(stepwise.denoiser, ("fp32", "w8a8", "w4a4"), stepwise.quantized)
    noise = initial_noise([(prompt, 0) for prompt in PROMPTS], stepwise.latent_shape)
    texts = ("w4a4 fp32*2", "fp32 w4a4 fp32", "w8a8 fp32 w4a4")
    plans = [PrecisionPlan.parse(text) for text in texts]
    engine = PrefixEngine(stepwise, bank, stepwise.encode(PROMPTS), noise)
    expected = dict(engine.each(plans))
    for i, plan in enumerate(plans):
        deploy.apply(pipe, plan)
        run = expected[i]
        assert isinstance(run, torch.Tensor)
        length = stepwise.t5_length
        found = call(
            pipe, 3, latents=noise.clone(), guidance_scale=guidance, max_sequence_length=length
        )
        assert torch.equal(found, run[-1]), plan


def test_both_calls_of_a_heun_step_are_at_one_level(pipe: Any) -> None:
    pipe.scheduler = FlowMatchHeunDiscreteScheduler()
    deploy.apply(pipe, MIXED)
    watch = Watch(pipe)
    call(pipe)
    assert watch.stop() == ["fp32", "fp32", "w4a4", "w4a4", "w4a4", "w4a4", "w8a8"]


def test_sequential_passes_of_a_step_are_at_one_level(pipe: Any) -> None:
    """Skip-layer guidance calls the network twice a step, one call after the other."""
    deploy.apply(pipe, MIXED)
    watch = Watch(pipe)
    options: dict[str, Any] = {"skip_guidance_layers": [1], "skip_layer_guidance_start": -1.0}
    call(pipe, skip_layer_guidance_stop=1.0, **options)
    assert watch.stop() == [level for level in MIXED for _ in range(2)]


def test_remove_restores_the_very_same_objects(pipe: Any) -> None:
    denoiser, config, before = pipe.transformer, dict(pipe.config), call(pipe)
    modules = [(name, id(module)) for name, module in denoiser.named_modules()]
    attributes = {id(m): set(vars(m)) for m in denoiser.modules()}
    weights = {name: id(p) for name, p in denoiser.named_parameters()}
    deploy.apply(pipe, MIXED)
    assert dict(pipe.config) == config
    call(pipe)
    deploy.remove(pipe)
    assert pipe.transformer is denoiser
    assert dict(pipe.config) == config
    assert [(name, id(module)) for name, module in denoiser.named_modules()] == modules
    assert {id(m): set(vars(m)) for m in denoiser.modules()} == attributes
    assert {name: id(p) for name, p in denoiser.named_parameters()} == weights
    assert torch.equal(call(pipe), before)
    with pytest.raises(UsageError, match="runs no plan"):
        deploy.remove(pipe)


def test_calls_repeat_and_plans_are_replaced(pipe: Any) -> None:
    deploy.apply(pipe, MIXED)
    twins = dict(pipe.transformer._made)
    first = call(pipe)
    assert torch.equal(call(pipe), first)
    deploy.apply(pipe, PrecisionPlan.uniform("w4a4", 4))
    assert not torch.equal(call(pipe), first)
    deploy.apply(pipe, MIXED)
    assert torch.equal(call(pipe), first)
    assert pipe.transformer._made == twins  # nothing was rounded twice


def test_other_step_counts_are_an_error_unless_resampled(pipe: Any) -> None:
    deploy.apply(pipe, MIXED)
    expected = call(pipe)
    for steps in (3, 5):
        with pytest.raises(UsageError, match=f"the plan has 4 steps, the schedule .* {steps}"):
            call(pipe, steps)
    assert torch.equal(call(pipe), expected)
    deploy.apply(pipe, MIXED, resample=True)
    watch = Watch(pipe)
    call(pipe, 8)
    call(pipe, 2)
    assert torch.equal(call(pipe), expected)
    assert watch.stop() == [*(x for x in MIXED for _ in range(2)), "w4a4", "w8a8", *MIXED]


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=12), st.integers(1, 40))
def test_resampling(levels: list[str], steps: int) -> None:
    plan = PrecisionPlan(tuple(levels))
    found = resampled(plan, steps)
    assert len(found) == steps
    assert resampled(plan, len(plan)) == plan
    stretched = [level for level in levels for _ in range(steps)]  # at steps x len places
    middles = [stretched[(2 * i + 1) * len(levels) // 2] for i in range(steps)]
    assert list(found) == middles


def test_an_exception_in_a_call_leaves_a_usable_pipeline(pipe: Any) -> None:
    deploy.apply(pipe, MIXED)
    expected = call(pipe)

    def stop(_pipe: Any, step: int, _timestep: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        if step == 1:
            raise KeyboardInterrupt
        return inputs

    with pytest.raises(KeyboardInterrupt):
        call(pipe, callback_on_step_end=stop)
    assert torch.equal(call(pipe), expected)


def test_callbacks_of_the_user_are_kept(pipe: Any) -> None:
    seen = []

    def note(_pipe: Any, step: int, _timestep: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        seen.append(step)
        return {"latents": inputs["latents"] + 0.1}

    deploy.apply(pipe, PrecisionPlan.uniform("fp32", 4))
    found = call(pipe, callback_on_step_end=note)
    deploy.remove(pipe)
    assert torch.equal(call(pipe, callback_on_step_end=note), found)
    assert seen == [0, 1, 2, 3] * 2


def test_an_interrupted_call_is_followed_by_a_whole_one(pipe: Any) -> None:
    deploy.apply(pipe, MIXED)
    expected = call(pipe)

    def stop(own: Any, step: int, _timestep: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        own._interrupt = step == 1
        return inputs

    call(pipe, callback_on_step_end=stop)
    assert torch.equal(call(pipe), expected)


@pytest.mark.parametrize(
    "scheduler", [FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler]
)
def test_image_to_image_runs_the_plan_from_its_middle(pipe: Any, scheduler: Any) -> None:
    """The plan's steps are those of the schedule: strength 0.5 begins at step 2 of 4."""
    own = StableDiffusion3Img2ImgPipeline(**{**pipe.components, "scheduler": scheduler()})
    size = own.transformer.config.sample_size * own.vae_scale_factor
    check_partial_loop(own, image=torch.rand(2, 3, size, size))


def test_inpainting_runs_the_plan_from_its_middle(pipe: Any) -> None:
    """Of models with 16 channels: the pipeline takes no others."""
    config = dict(pipe.transformer.config)
    channels = {"in_channels": 16, "out_channels": 16, "num_layers": 2}
    denoiser = type(pipe.transformer).from_config({**config, **channels})
    vae = AutoencoderKL.from_config({**pipe.vae.config, "latent_channels": 16})
    vae.register_to_config(scaling_factor=0.7, shift_factor=0.1)
    components = {**pipe.components, "transformer": denoiser.eval(), "vae": vae.eval()}
    own = StableDiffusion3InpaintPipeline(**components)
    size = denoiser.config.sample_size * own.vae_scale_factor
    image, mask = torch.rand(2, 3, size, size), torch.ones(2, 1, size, size)
    check_partial_loop(own, image=image, mask_image=mask, height=size, width=size)


def check_partial_loop(own: Any, **options: Any) -> None:
    own.set_progress_bar_config(disable=True)
    options["strength"] = 0.5
    expected = call(own, **options)
    deploy.apply(own, PrecisionPlan.uniform("fp32", 4), levels=("w4a4", "w8a8"))
    assert torch.equal(call(own, **options), expected)
    deploy.apply(own, PrecisionPlan(("w4a4", "fp32", "w8a8", "fp32")))
    watch = Watch(own)
    call(own, **options)
    levels = watch.stop()
    deploy.remove(own)
    assert list(dict.fromkeys(levels)) == ["w8a8", "fp32"]
    assert len(levels) == 1 + own.scheduler.order


def test_a_call_outside_of_the_loop_is_refused(pipe: Any) -> None:
    deploy.apply(pipe, MIXED)
    call(pipe)
    with pytest.raises(UsageError, match=r"outside of its pipeline's loop.*deploy\.remove"):
        pipe.transformer(torch.zeros(1, 16, 16, 16), timestep=torch.zeros(1))


def test_it_looks_like_the_denoiser(pipe: Any) -> None:
    denoiser = pipe.transformer
    deploy.apply(pipe, MIXED)
    planned = pipe.transformer
    assert planned is not denoiser
    assert isinstance(planned, type(denoiser))
    assert issubclass(planned.__class__, ModelMixin)
    assert planned.config is denoiser.config
    assert (planned.dtype, planned.device) == (denoiser.dtype, denoiser.device)
    assert planned.num_parameters() == denoiser.num_parameters()
    theirs = dict(denoiser.named_parameters())
    assert {name: id(p) for name, p in planned.named_parameters()} == {
        name: id(p) for name, p in theirs.items()
    }
    assert planned.state_dict().keys() == denoiser.state_dict().keys()
    assert planned.transformer_blocks is denoiser.transformer_blocks
    assert not hasattr(planned, "no_such_thing")
    assert pipe.components["transformer"] is planned


def test_it_moves_and_casts_all_levels(pipe: Any) -> None:
    deploy.apply(pipe, MIXED)
    expected = call(pipe)
    pipe.transformer.to(torch.float64)
    for module in pipe.transformer._made.values():
        assert {p.dtype for p in module.parameters()} == {torch.float64}
    pipe.transformer.to(torch.float32)
    assert torch.equal(call(pipe), expected)
    pipe.transformer.train()
    assert all(module.training for module in pipe.transformer._made.values())
    pipe.transformer.eval()
    assert not any(module.training for module in pipe.transformer._made.values())


def test_twins_share_what_no_level_changes(pipe: Any) -> None:
    deploy.apply(pipe, MIXED)
    names = quantized_layers(pipe.transformer)
    theirs = {id(p) for p in pipe.transformer.parameters()}
    for level in ("w4a4", "w8a8"):
        own = [p for p in pipe.transformer._made[level].parameters() if id(p) not in theirs]
        assert len(own) == len(names)


def test_levels_of_the_own_dtype_are_the_denoiser_itself(pipe: Any) -> None:
    deploy.apply(pipe, PrecisionPlan.parse("bf16 fp32"))
    assert pipe.transformer._made["fp32"] is pipe.transformer.original
    assert pipe.transformer._made["bf16"] is not pipe.transformer.original


def test_the_list_of_layers_is_that_of_the_adapter(pipe: Any) -> None:
    stepwise = Sd3Stepwise(pipe, steps=4, guidance=4.0)
    assert quantized_layers(pipe.transformer) == stepwise.quantized
    with pytest.raises(UsageError, match="layers of a Linear are to be quantized is not known"):
        quantized_layers(torch.nn.Linear(1, 1))


def test_bad_plans_and_pipelines_are_refused(pipe: Any) -> None:
    denoiser = pipe.transformer
    with pytest.raises(UsageError, match="unknown level 'w4a5'"):
        deploy.apply(pipe, PrecisionPlan.parse("fp32 w4a5"))
    with pytest.raises(UsageError, match=r"native:w4a4 can't run on this CPU"):
        deploy.apply(pipe, PrecisionPlan.parse("fp32 native:w4a4"))
    assert pipe.transformer is denoiser
    with pytest.raises(UsageError, match="has 0 of transformer, unet"):
        deploy.apply(object(), MIXED)


@pytest.mark.parametrize("order", [1, 2])
def test_steps_of_schedules(order: int) -> None:
    scheduler = (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler)[order - 1]()
    for steps in range(1, 6):
        scheduler.set_timesteps(steps)
        assert steps_of(scheduler) == steps


def test_a_scheduler_that_does_not_count_is_read_by_its_timesteps() -> None:
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(5)
    steps = [step_of(scheduler, t.expand(2)) for t in scheduler.timesteps]
    assert steps == [0, 1, 2, 3, 4]
    for seen, message in ((torch.tensor(7.5), "stands 0 times"), (None, "given no timestep")):
        with pytest.raises(UsageError, match=message):
            step_of(scheduler, seen)
    repeating = PNDMScheduler(skip_prk_steps=True)
    repeating.set_timesteps(5)
    with pytest.raises(UsageError, match="stands 2 times in the schedule of PNDMScheduler"):
        step_of(repeating, repeating.timesteps[1])
