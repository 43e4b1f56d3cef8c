"""The adapter against `StableDiffusion3Pipeline.__call__` itself (DESIGN §3)."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    StableDiffusion3Pipeline,
    UniPCMultistepScheduler,
)

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.noise import initial_noise
from tmpdiff_bench.pipelines import SamplerState, Sd3Stepwise
from tmpdiff_bench.pipelines.solver import Solver

PROMPTS = ["a red circle", "two blue stars and a green ring", ""]
SAMPLES = [(str(i), i) for i in range(len(PROMPTS))]


def run(stepwise: Sd3Stepwise, noise: torch.Tensor) -> torch.Tensor:
    conditioning = stepwise.encode(PROMPTS)
    state = stepwise.initial_state(noise)
    for step in range(stepwise.steps):
        state = stepwise.step(state, step, stepwise.denoiser, conditioning)
    return state.latents


def relative_difference(x: torch.Tensor, reference: torch.Tensor) -> float:
    return float((x - reference).abs().max() / reference.abs().max())


@pytest.mark.parametrize("guidance", [1.0, 4.0, 7.5])
@pytest.mark.parametrize("steps", [1, 3, 8])
def test_identity(untrained_sd3: StableDiffusion3Pipeline, guidance: float, steps: int) -> None:
    stepwise = Sd3Stepwise(untrained_sd3, steps=steps, guidance=guidance)
    noise = initial_noise(SAMPLES, stepwise.latent_shape)
    options = {
        "latents": noise.clone(),
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "max_sequence_length": stepwise.t5_length,
    }
    expected = untrained_sd3(PROMPTS, output_type="latent", **options).images
    found = run(stepwise, noise)
    assert relative_difference(found, expected) < 1e-5
    pictures = untrained_sd3(PROMPTS, output_type="pt", **options).images
    assert torch.allclose(stepwise.decode(found), pictures, atol=1e-5)


# diffusers 0.42 converts tensors in a way that NumPy 2 deprecates
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        DPMSolverMultistepScheduler(
            solver_order=3, prediction_type="flow_prediction", use_flow_sigmas=True
        ),
        UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
        FlowMatchHeunDiscreteScheduler(shift=3.0),
    ],
    ids=["shift", "dynamic-shift", "dpm-2m", "dpm-3m", "unipc", "heun"],
)
def test_identity_for_other_solvers(
    untrained_sd3: StableDiffusion3Pipeline, scheduler: object
) -> None:
    """Multistep memory travels in the state, also through indexing and concatenation."""
    pipe = StableDiffusion3Pipeline(**{**untrained_sd3.components, "scheduler": scheduler})
    pipe.set_progress_bar_config(disable=True)
    stepwise = Sd3Stepwise(pipe, steps=6, guidance=4.0)
    noise = initial_noise(SAMPLES, stepwise.latent_shape)
    expected = pipe(
        PROMPTS,
        latents=noise.clone(),
        num_inference_steps=6,
        guidance_scale=4.0,
        max_sequence_length=stepwise.t5_length,
        output_type="latent",
    ).images
    assert relative_difference(run(stepwise, noise), expected) < 1e-5
    conditioning = stepwise.encode(PROMPTS)
    state = stepwise.initial_state(noise)
    for step in range(6):
        parts = [state[[i]] for i in range(len(PROMPTS))]
        state = stepwise.step(SamplerState.cat(parts), step, stepwise.denoiser, conditioning)
    assert relative_difference(state.latents, expected) < 1e-5


def test_step_leaves_its_input_alone(untrained_sd3: StableDiffusion3Pipeline) -> None:
    stepwise = Sd3Stepwise(untrained_sd3, steps=4, guidance=4.0)
    conditioning = stepwise.encode(PROMPTS)
    noise = initial_noise(SAMPLES, stepwise.latent_shape)
    state = stepwise.initial_state(noise)
    before = state.latents.clone()
    first = stepwise.step(state, 0, stepwise.denoiser, conditioning)
    second = stepwise.step(state, 0, stepwise.denoiser, conditioning)
    assert torch.equal(state.latents, before)
    assert torch.equal(first.latents, second.latents)


def test_ddim_is_the_loop_of_diffusers() -> None:
    """A scheduler that no flow model takes: against its own loop, on a nonlinear toy."""
    noise = initial_noise(SAMPLES, (4, 8, 8))
    theirs, ours = DDIMScheduler(), DDIMScheduler()
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(8)
    expected = noise
    for t in theirs.timesteps:
        expected = theirs.step(expected.sin() + t / 1000, t, expected).prev_sample
    solver = Solver(ours)
    state = solver.initial_state(noise)
    for step in range(len(solver)):
        for iteration in solver.iterations(step):
            prediction = state.latents.sin() + solver.timestep(iteration) / 1000
            state = solver.advance(state, iteration, prediction)
    assert torch.equal(state.latents, expected)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchLCMScheduler(),
        DPMSolverMultistepScheduler(
            algorithm_type="sde-dpmsolver++",
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
        ),
    ],
    ids=["lcm", "sde"],
)
def test_schedulers_that_draw_are_refused(
    untrained_sd3: StableDiffusion3Pipeline, scheduler: object
) -> None:
    pipe = StableDiffusion3Pipeline(**{**untrained_sd3.components, "scheduler": scheduler})
    stepwise = Sd3Stepwise(pipe, steps=3, guidance=1.0)
    with pytest.raises(UsageError, match="draws random numbers with these settings"):
        run(stepwise, initial_noise(SAMPLES, stepwise.latent_shape))


ThirdOrder = type("ThirdOrder", (FlowMatchHeunDiscreteScheduler,), {"order": 3})


def test_network_evaluations(untrained_sd3: StableDiffusion3Pipeline) -> None:
    """Counted against the calls that the network gets."""
    for scheduler in (FlowMatchEulerDiscreteScheduler(), FlowMatchHeunDiscreteScheduler()):
        pipe = StableDiffusion3Pipeline(**{**untrained_sd3.components, "scheduler": scheduler})
        for guidance in (1.0, 4.0):
            stepwise = Sd3Stepwise(pipe, steps=4, guidance=guidance)
            rows: list[int] = []
            handle = stepwise.denoiser.register_forward_hook(
                lambda _, args, kwargs, output, rows=rows: rows.append(len(output[0])),
                with_kwargs=True,
            )
            run(stepwise, initial_noise(SAMPLES, stepwise.latent_shape))
            handle.remove()
            assert sum(rows) == len(SAMPLES) * sum(stepwise.nfe(step) for step in range(4))


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), "not deterministic"),
        (ThirdOrder(), "calls the network 3 times a step: at most 2"),
    ],
)
def test_unsupported_schedulers_are_refused(
    untrained_sd3: StableDiffusion3Pipeline, scheduler: object, message: str
) -> None:
    pipe = StableDiffusion3Pipeline(**{**untrained_sd3.components, "scheduler": scheduler})
    with pytest.raises(UsageError, match=message):
        Sd3Stepwise(pipe, steps=4, guidance=4.0)


def test_quantized_layers(untrained_sd3: StableDiffusion3Pipeline) -> None:
    """Attention and feed-forward projections of six blocks; the last has no text stream after
    attention.
    """
    names = Sd3Stepwise(untrained_sd3, steps=4, guidance=4.0).quantized
    assert len(names) == 6 * 12 - 3
    assert not any("norm" in name or "embed" in name or "proj_out" in name for name in names)


def test_truncated_prompts_are_named(untrained_sd3: StableDiffusion3Pipeline) -> None:
    stepwise = Sd3Stepwise(untrained_sd3, steps=4, guidance=4.0)
    long = "a red circle and " * 10
    assert stepwise.truncated([*PROMPTS, long]) == [long]
