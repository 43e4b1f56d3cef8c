"""What single families have beside the common contract: layers, learned sigmas, told guidance."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    StableDiffusionXLPipeline,
)

from tmpdiff_bench.noise import initial_noise
from tmpdiff_bench.pipelines import FluxStepwise, PixArtStepwise, SdxlStepwise, StepwisePipeline
from tmpdiff_bench.zoo.evaluation import own_arguments

# diffusers 0.42 converts tensors in a way that NumPy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS = ["a red circle", "two blue stars"]
SAMPLES = [("a", 0), ("b", 0)]


def run(stepwise: StepwisePipeline, noise: torch.Tensor) -> torch.Tensor:
    conditioning, state = stepwise.encode(PROMPTS), stepwise.initial_state(noise)
    for step in range(stepwise.steps):
        state = stepwise.step(state, step, stepwise.denoiser, conditioning)
    return state.latents


def test_layers_of_flux(untrained_flux: FluxPipeline) -> None:
    """Of two two-stream blocks 12 layers each, of four one-stream blocks 5 each."""
    names = FluxStepwise(untrained_flux, steps=2, guidance=4.0).quantized
    assert len(names) == 2 * 12 + 4 * 5
    assert "single_transformer_blocks.0.proj_out" in names
    assert "single_transformer_blocks.0.norm.linear" not in names


def test_layers_of_pixart(untrained_pixart: PixArtSigmaPipeline) -> None:
    """Of six blocks: four projections of each attention, two layers of the feed-forward."""
    names = PixArtStepwise(untrained_pixart, steps=2, guidance=4.0).quantized
    assert len(names) == 6 * 10


def test_layers_of_sdxl(untrained_sdxl: StableDiffusionXLPipeline) -> None:
    names = SdxlStepwise(untrained_sdxl, steps=2, guidance=4.0).quantized
    unet = untrained_sdxl.unet
    kinds = [type(unet.get_submodule(name)).__name__ for name in names]
    assert "Conv2d" in kinds
    assert "Linear" in kinds
    left = {
        name
        for name, module in unet.named_modules()
        if type(module).__name__ in ("Conv2d", "Linear") and name not in names
    }
    assert {name for name in left if not name.endswith("time_emb_proj")} == {
        "conv_in",
        "conv_out",
        "time_embedding.linear_1",
        "time_embedding.linear_2",
        "add_embedding.linear_1",
        "add_embedding.linear_2",
    }


def test_a_distilled_flux_is_told_its_guidance(untrained_flux: FluxPipeline) -> None:
    """FLUX.1-dev: one pass, and the scale as an input of the transformer."""
    torch.manual_seed(0)
    config = {**untrained_flux.transformer.config, "guidance_embeds": True}
    transformer = FluxTransformer2DModel.from_config(config)
    pipe = FluxPipeline(**{**untrained_flux.components, "transformer": transformer})
    pipe.set_progress_bar_config(disable=True)
    stepwise = FluxStepwise(pipe, steps=3, guidance=3.5)
    noise = initial_noise(SAMPLES, stepwise.latent_shape)
    options: dict[str, Any] = own_arguments(pipe, noise, 1.0)
    expected = pipe(
        PROMPTS, num_inference_steps=3, guidance_scale=3.5, output_type="latent", **options
    ).images
    expected = pipe._unpack_latents(expected, 64, 64, pipe.vae_scale_factor)
    found = run(stepwise, noise)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert stepwise.nfe(0) == 1
    assert not torch.allclose(found, run(FluxStepwise(pipe, steps=3, guidance=1.5), noise))


def test_learned_sigmas_of_pixart_are_left_out(untrained_pixart: PixArtSigmaPipeline) -> None:
    """The published PixArt-Sigma predicts a variance too, which the pipeline throws away."""
    torch.manual_seed(0)
    config = {**untrained_pixart.transformer.config, "out_channels": 8}
    transformer = PixArtTransformer2DModel.from_config(config)
    pipe = PixArtSigmaPipeline(**{**untrained_pixart.components, "transformer": transformer})
    pipe.set_progress_bar_config(disable=True)
    stepwise = PixArtStepwise(pipe, steps=3, guidance=4.0)
    noise = initial_noise(SAMPLES, stepwise.latent_shape)
    options: dict[str, Any] = own_arguments(pipe, noise, 4.0)
    expected = pipe(PROMPTS, num_inference_steps=3, output_type="latent", **options).images
    found = run(stepwise, noise)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_case_makes_no_difference_to_pixart(untrained_pixart: PixArtSigmaPipeline) -> None:
    stepwise = PixArtStepwise(untrained_pixart, steps=2, guidance=4.0)
    both = stepwise.encode(["ein roter Stern", "ein roter stern"]).positive["encoder_hidden_states"]
    assert torch.equal(both[0], both[1])


def test_latent_statistics_of_sdxl(untrained_sdxl: StableDiffusionXLPipeline) -> None:
    """Some VAEs (Playground v2.5's) give the mean and deviation of each latent channel."""
    vae = type(untrained_sdxl.vae).from_config(
        untrained_sdxl.vae.config,
        latents_mean=[-1.6, 1.1, 0.2, -0.3],
        latents_std=[8.0, 5.0, 4.0, 2.0],
    )
    pipe = StableDiffusionXLPipeline(
        **{**untrained_sdxl.components, "vae": vae}, add_watermarker=False
    )
    pipe.set_progress_bar_config(disable=True)
    stepwise = SdxlStepwise(pipe, steps=1, guidance=1.0)
    noise = initial_noise(SAMPLES, stepwise.latent_shape)
    options: dict[str, Any] = own_arguments(pipe, noise, 1.0)
    expected = pipe(PROMPTS, num_inference_steps=1, output_type="pt", **options).images
    assert torch.allclose(stepwise.decode(run(stepwise, noise)), expected, atol=1e-5)
