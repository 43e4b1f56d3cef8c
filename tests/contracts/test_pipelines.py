"""The contract of DESIGN §3, for every family: what `StepwisePipeline` promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from tmpdiff_bench.levels import LevelBank
from tmpdiff_bench.noise import initial_noise
from tmpdiff_bench.pipelines import MODELS, LoadedModel, SamplerState, StepwisePipeline
from tmpdiff_bench.zoo.evaluation import own_arguments

# diffusers 0.42 converts tensors in a way that NumPy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS = ["a red circle", "zwei blaue Sterne über einem grünen Ring", ""]
SAMPLES = [(str(i), i) for i in range(len(PROMPTS))]
DIFFUSION = {"beta_schedule": "linear", "prediction_type": "v_prediction"}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
_NOISE_TO_IMAGE = {
    "dpm-2m": (DPMSolverMultistepScheduler, DIFFUSION),
    "dpm-3m": (DPMSolverMultistepScheduler, DIFFUSION | {"solver_order": 3}),
    "dpm-epsilon": (DPMSolverMultistepScheduler, {}),
    "unipc": (UniPCMultistepScheduler, DIFFUSION),
    "ddim": (DDIMScheduler, DIFFUSION | {"rescale_betas_zero_snr": True}),
    "euler": (EulerDiscreteScheduler, DIFFUSION),
    "euler-karras": (
        EulerDiscreteScheduler,
        DIFFUSION | {"use_karras_sigmas": True, "timestep_spacing": "trailing"},
    ),
    "heun": (HeunDiscreteScheduler, DIFFUSION),
}
SCHEDULERS: dict[str, dict[str, Any]] = {
    "sd3": {
        "shift": (FlowMatchEulerDiscreteScheduler, {"shift": 3.0}),
        "dynamic-shift": (FlowMatchEulerDiscreteScheduler, {"use_dynamic_shifting": True}),
        "dpm-2m": (DPMSolverMultistepScheduler, FLOW | {"flow_shift": 3.0}),
        "dpm-3m": (DPMSolverMultistepScheduler, FLOW | {"solver_order": 3}),
        "unipc": (UniPCMultistepScheduler, FLOW),
        "heun": (FlowMatchHeunDiscreteScheduler, {"shift": 3.0}),
    },
    "flux": {
        "shift": (FlowMatchEulerDiscreteScheduler, {"shift": 3.0}),
        "dynamic-shift": (FlowMatchEulerDiscreteScheduler, {"use_dynamic_shifting": True}),
        "karras": (FlowMatchEulerDiscreteScheduler, {"shift": 3.0, "use_karras_sigmas": True}),
    },
    "pixart": _NOISE_TO_IMAGE,
    "sdxl": _NOISE_TO_IMAGE,
}
CASES = [(family, name) for family, known in SCHEDULERS.items() for name in known]

Build = Callable[..., tuple[StepwisePipeline, Any]]


@pytest.fixture
def build(untrained: Callable[[str], Any]) -> Build:
    """An adapter with its pipeline, whose scheduler can be another one."""

    def made(
        family: str, *, steps: int = 4, guidance: float = 4.0, scheduler: Any = None
    ) -> tuple[StepwisePipeline, Any]:
        pipeline = untrained(family)
        if scheduler is not None:
            pipeline = type(pipeline)(**{**pipeline.components, "scheduler": scheduler})
            pipeline.set_progress_bar_config(disable=True)
        loaded = LoadedModel(family, pipeline, "untrained", "")
        return loaded.stepwise(steps=steps, guidance=guidance), pipeline

    return made


def run(stepwise: StepwisePipeline, noise: torch.Tensor, *, alone: bool = False) -> torch.Tensor:
    """Final latents; `alone` steps every row of the batch by itself."""
    conditioning = stepwise.encode(PROMPTS)
    state = stepwise.initial_state(noise)
    for step in range(stepwise.steps):
        if alone:
            state = SamplerState.cat(
                [
                    stepwise.step(state[[i]], step, stepwise.denoiser, conditioning[[i]])
                    for i in range(len(state))
                ]
            )
        else:
            state = stepwise.step(state, step, stepwise.denoiser, conditioning)
    return state.latents


def own_call(pipeline: Any, noise: torch.Tensor, steps: int, guidance: float, out: str) -> Any:
    images = pipeline(
        PROMPTS,
        num_inference_steps=steps,
        output_type=out,
        **own_arguments(pipeline, noise.clone(), guidance),
    ).images
    if images.ndim == 3:  # flux gives latents as it packs them
        size = noise.shape[-1] * pipeline.vae_scale_factor
        images = pipeline._unpack_latents(images, size, size, pipeline.vae_scale_factor)
    return images


def relative_difference(x: torch.Tensor, reference: torch.Tensor) -> float:
    return float((x - reference).abs().max() / reference.abs().max())


@pytest.mark.parametrize("guidance", [1.0, 4.0, 7.5])
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("family", MODELS)
def test_it_is_the_pipelines_own_call(
    build: Build, family: str, steps: int, guidance: float
) -> None:
    stepwise, pipeline = build(family, steps=steps, guidance=guidance)
    noise = initial_noise(SAMPLES, stepwise.latent_shape)
    found = run(stepwise, noise)
    assert relative_difference(found, own_call(pipeline, noise, steps, guidance, "latent")) < 1e-5
    images = stepwise.decode(found)
    assert torch.allclose(images, own_call(pipeline, noise, steps, guidance, "pt"), atol=1e-5)


@pytest.mark.parametrize(("family", "name"), CASES)
def test_so_it_is_with_other_solvers(build: Build, family: str, name: str) -> None:
    """A solver's memory travels in the state, also through indexing and concatenation."""
    kind, settings = SCHEDULERS[family][name]
    stepwise, pipeline = build(family, steps=5, scheduler=kind(**settings))
    noise = initial_noise(SAMPLES, stepwise.latent_shape)
    expected = own_call(pipeline, noise, 5, 4.0, "latent")
    assert relative_difference(run(stepwise, noise), expected) < 1e-5
    # in another batch the last bits differ, and an untrained network makes more of them
    assert relative_difference(run(stepwise, noise, alone=True), expected) < 1e-4


@pytest.mark.parametrize("family", MODELS)
def test_a_step_leaves_its_input_alone(build: Build, family: str) -> None:
    stepwise, _ = build(family)
    conditioning = stepwise.encode(PROMPTS)
    state = stepwise.initial_state(initial_noise(SAMPLES, stepwise.latent_shape))
    for step in range(3):
        latents = state.latents.clone()
        words = {name: value.clone() for name, value in conditioning.positive.items()}
        first = stepwise.step(state, step, stepwise.denoiser, conditioning)
        second = stepwise.step(state, step, stepwise.denoiser, conditioning)
        assert torch.equal(first.latents, second.latents)
        assert torch.equal(state.latents, latents)
        for name, value in words.items():
            assert torch.equal(conditioning.positive[name], value)
        state = first


@pytest.mark.parametrize("family", MODELS)
def test_the_prompt_and_guidance_matter(build: Build, family: str) -> None:
    stepwise, _ = build(family)
    noise = initial_noise([("a", 0)], stepwise.latent_shape).expand(len(PROMPTS), -1, -1, -1)
    latents = run(stepwise, noise)
    assert not torch.allclose(latents[0], latents[1])
    unguided = run(build(family, guidance=1.0)[0], noise)
    assert not torch.allclose(latents[0], unguided[0])


@pytest.mark.parametrize("family", MODELS)
def test_shapes_and_ranges(build: Build, family: str) -> None:
    stepwise, _ = build(family)
    guided, unguided = stepwise.encode(PROMPTS), build(family, guidance=1.0)[0].encode(PROMPTS)
    assert len(guided) == len(unguided) == len(PROMPTS)
    assert not unguided.negative
    for name, value in guided.positive.items():
        assert len(value) == len(PROMPTS)
        assert guided.negative[name].shape == value.shape
    assert {len(x) for x in guided.for_network().values()} == {2 * len(PROMPTS)}
    assert len(guided[[0, 2]]) == 2
    noise = initial_noise(SAMPLES, stepwise.latent_shape)
    state = stepwise.initial_state(noise)
    assert state.latents.shape == (len(PROMPTS), *stepwise.latent_shape)
    images = stepwise.decode(3 * noise)
    assert images.shape == (len(PROMPTS), 3, *stepwise.resolution)
    assert images.min() >= 0
    assert images.max() <= 1
    assert images.dtype == torch.float32


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("family", MODELS)
def test_evaluations_are_counted(build: Build, family: str, guidance: float) -> None:
    stepwise, _ = build(family, guidance=guidance)
    rows = []
    with pytest.MonkeyPatch.context() as patch:
        forward = stepwise.denoiser.forward

        def counting(*args: Any, **kwargs: Any) -> Any:
            latents = args[0] if args else kwargs["hidden_states"]
            rows.append(len(latents))
            return forward(*args, **kwargs)

        patch.setattr(stepwise.denoiser, "forward", counting)
        run(stepwise, initial_noise(SAMPLES, stepwise.latent_shape))
    assert sum(rows) == len(SAMPLES) * sum(stepwise.nfe(step) for step in range(stepwise.steps))


@pytest.mark.parametrize("family", MODELS)
def test_levels_change_the_quantized_layers(build: Build, family: str) -> None:
    """Every named layer is one that levels know, and together they change what a step gives."""
    stepwise, _ = build(family)
    assert stepwise.quantized
    outside = ("norm", "embed", "time_", "adaln", "conv_in", "conv_out")
    assert not any(name.startswith(outside) or name == "proj_out" for name in stepwise.quantized)
    bank = LevelBank(stepwise.denoiser, ("fp32", "w4a4"), stepwise.quantized)
    conditioning = stepwise.encode(PROMPTS)
    state = stepwise.initial_state(initial_noise(SAMPLES, stepwise.latent_shape))
    reference = stepwise.step(state, 0, stepwise.denoiser, conditioning).latents
    assert torch.equal(stepwise.step(state, 0, bank["fp32"], conditioning).latents, reference)
    low = stepwise.step(state, 0, bank["w4a4"], conditioning).latents
    assert 0 < relative_difference(low, reference) < 1


@pytest.mark.parametrize("family", MODELS)
def test_prompts_that_are_cut_are_named(build: Build, family: str) -> None:
    stepwise, _ = build(family)
    long = "A red circle and " * 10
    assert stepwise.truncated([*PROMPTS, long]) == [long]
