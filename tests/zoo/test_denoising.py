"""What the models on the encoders of sd3 are trained on: encoder copies, noise, conditions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    DDPMScheduler,
    FluxPipeline,
    PixArtSigmaPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
)
from torch import Tensor, nn

from tmpdiff_bench.pipelines.calls import Call
from tmpdiff_bench.pipelines.embedded import call_defaults
from tmpdiff_bench.zoo.captions import sample_captions
from tmpdiff_bench.zoo.denoising import Batch, DenoiserPart, Recipe, diffused
from tmpdiff_bench.zoo.flux import FluxRecipe, with_capitals, without_projection
from tmpdiff_bench.zoo.latents import LatentSet, build_latents, token_ids
from tmpdiff_bench.zoo.pixart import PixArtRecipe, without_shift
from tmpdiff_bench.zoo.scenes import sample_scenes
from tmpdiff_bench.zoo.sdxl import SdxlRecipe
from tmpdiff_bench.zoo.text import T5Part, lowered_ids

# diffusers 0.42 converts tensors in a way that NumPy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    _, captions = sample_captions(sample_scenes(200, seed=4), seed=4, reserved=False)
    return [c.text for c in captions]


@pytest.fixture(scope="module")
def data(untrained_sd3: StableDiffusion3Pipeline) -> LatentSet:
    tokenizers = (untrained_sd3.tokenizer, untrained_sd3.tokenizer_3)
    return build_latents(untrained_sd3.vae, tokenizers, 64, seed=5, captions_per_scene=2)


def test_lowered_ids_are_those_of_the_lowered_text(
    untrained_sd3: StableDiffusion3Pipeline, untrained_pixart: PixArtSigmaPipeline, texts: list[str]
) -> None:
    table = lowered_ids(untrained_sd3.tokenizer_3, untrained_pixart.tokenizer)
    cased = token_ids(untrained_sd3.tokenizer_3, texts)
    lower = token_ids(untrained_pixart.tokenizer, [text.lower() for text in texts])
    assert torch.equal(table[cased], lower)
    assert not torch.equal(cased, token_ids(untrained_sd3.tokenizer_3, [t.lower() for t in texts]))


def test_the_encoder_with_capitals_is_the_same(
    untrained_sd3: StableDiffusion3Pipeline, untrained_pixart: PixArtSigmaPipeline, texts: list[str]
) -> None:
    table = lowered_ids(untrained_sd3.tokenizer_3, untrained_pixart.tokenizer)
    cased = with_capitals(untrained_pixart.text_encoder, table)
    ids = token_ids(untrained_sd3.tokenizer_3, texts[:8])
    with torch.no_grad():
        assert torch.equal(cased(ids)[0], untrained_pixart.text_encoder(table[ids])[0])


def test_the_encoder_without_projection_is_the_same(
    untrained_sd3: StableDiffusion3Pipeline, texts: list[str]
) -> None:
    whole = untrained_sd3.text_encoder
    ids = token_ids(untrained_sd3.tokenizer, texts[:8])
    with torch.no_grad():
        expected = whole(ids, output_hidden_states=True)
        found = without_projection(whole)(ids, output_hidden_states=True)
        projected = whole.text_projection(found.pooler_output)
    assert torch.equal(found.hidden_states[-2], expected.hidden_states[-2])
    assert torch.allclose(projected, expected.text_embeds, atol=1e-6)


def test_teacher_and_pupil_stand_at_the_same_word(
    untrained_sd3: StableDiffusion3Pipeline, data: LatentSet
) -> None:
    part = T5Part(untrained_sd3, data, data, batch=8)
    clip, t5 = part._training
    for row in range(20):
        pupil, teacher = part.tokenizer, untrained_sd3.tokenizer
        spoken = [pupil.decode(i).strip() for i in t5[row] if i > 1]  # 0 pads, 1 ends
        theirs = [teacher.decode(i).strip() for i in clip[row][1 : len(spoken) + 1]]
        assert spoken == theirs
    with torch.no_grad():
        explained = part.evaluate()
    assert 0.5 < explained["unexplained_plain"] < 10, "an untrained pupil explains nothing"


def test_velocities_are_those_of_diffusers() -> None:
    scheduler = DDPMScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
    latents = torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(3)
    timestep, noisy, velocity = diffused(latents, scheduler.alphas_cumprod, generator)
    noise = (noisy - scheduler.alphas_cumprod[timestep].sqrt().view(-1, 1, 1, 1) * latents) / (
        1 - scheduler.alphas_cumprod[timestep]
    ).sqrt().view(-1, 1, 1, 1)
    assert torch.allclose(noisy, scheduler.add_noise(latents, noise, timestep), atol=1e-5)
    expected = scheduler.get_velocity(latents, noise, timestep)
    assert torch.allclose(velocity, expected, atol=1e-3)
    assert noise.std() == pytest.approx(1, abs=0.05)
    assert timestep.min() >= 0
    assert timestep.max() < 1000


def test_the_vae_without_shift_gives_shifted_latents(
    untrained_sd3: StableDiffusion3Pipeline,
) -> None:
    vae = untrained_sd3.vae
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    shift, scale = vae.config.shift_factor, vae.config.scaling_factor
    with torch.no_grad():
        theirs = vae.decode(latents / scale + shift).sample
        ours = without_shift(vae).decode((latents + shift * scale) / scale).sample
    assert without_shift(vae).config.shift_factor is None
    assert torch.allclose(ours, theirs, atol=1e-5)


class Recorder(nn.Module):
    """Stands in for a denoiser and keeps what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, Tensor] = {}

    def forward(self, *args: Tensor, **kwargs: Any) -> tuple[Tensor]:
        self.seen = kwargs
        return ((args[0] if args else kwargs["hidden_states"]) * 0,)


@pytest.mark.parametrize("family", ["flux", "pixart", "sdxl"])
def test_training_gives_the_network_what_the_pipeline_does(
    family: str,
    untrained_sd3: StableDiffusion3Pipeline,
    untrained_flux: FluxPipeline,
    untrained_pixart: PixArtSigmaPipeline,
    untrained_sdxl: StableDiffusionXLPipeline,
    texts: list[str],
) -> None:
    recipe, pipeline = _recipe(
        family, untrained_sd3, untrained_flux, untrained_pixart, untrained_sdxl
    )
    prompts, n = texts[:6], 6
    positive, negative = conditions(family, pipeline, prompts)
    recorder = Recorder()
    recipe.denoiser = recorder
    dropped = torch.tensor([False, True] * 3)
    clip, t5 = (
        token_ids(tokenizer, prompts)
        for tokenizer in (untrained_sd3.tokenizer, untrained_sd3.tokenizer_3)
    )
    batch = Batch(torch.zeros(n, 4, 16, 16), clip, t5, dropped)
    recipe.loss(batch, torch.Generator().manual_seed(0))
    seen = flat(recorder.seen)
    compared = [name for name in CONDITIONS if name in positive]
    assert len(compared) == (3 if family == "sdxl" else 2)
    for name in compared:
        wanted = torch.where(
            dropped.view(-1, *[1] * (positive[name].ndim - 1)), negative[name], positive[name]
        ).float()
        difference = (seen[name].float() - wanted).abs().max()
        assert difference <= 0.05 * wanted.abs().max(), name  # training runs in bfloat16


CONDITIONS = (
    "encoder_hidden_states",
    "encoder_attention_mask",
    "pooled_projections",
    "text_embeds",
    "time_ids",
)


def conditions(
    family: str, pipeline: Any, prompts: list[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the pipeline's own call gives its denoiser, with the prompts and without them."""
    calls: list[dict[str, Any]] = []
    denoiser = pipeline.unet if family == "sdxl" else pipeline.transformer
    handle = denoiser.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(flat(kwargs)), with_kwargs=True
    )
    shared = {**call_defaults(family), "num_inference_steps": 1, "output_type": "latent"}
    call = Call(shared, {"prompt": prompts}, range(len(prompts)))
    pipeline(**call.arguments())
    handle.remove()
    if family == "flux":
        positive, negative = calls
        return positive, negative
    halves = {k: v.chunk(2) for k, v in calls[0].items() if k in CONDITIONS and v is not None}
    return {k: v[1] for k, v in halves.items()}, {k: v[0] for k, v in halves.items()}


def flat(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments, with those within `added_cond_kwargs` beside the others."""
    return {**kwargs, **(kwargs.get("added_cond_kwargs") or {})}


def _recipe(
    family: str,
    sd3: StableDiffusion3Pipeline,
    flux: FluxPipeline,
    pixart: PixArtSigmaPipeline,
    sdxl: StableDiffusionXLPipeline,
) -> tuple[Recipe, Any]:
    match family:
        case "flux":
            return FluxRecipe(flux), flux
        case "pixart":
            return PixArtRecipe(pixart, sd3), pixart
    return SdxlRecipe(sdxl, sd3), sdxl


def test_only_the_denoiser_is_trained_and_starts_with_placed_objects(
    untrained_sd3: StableDiffusion3Pipeline,
    untrained_sdxl: StableDiffusionXLPipeline,
    data: LatentSet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)  # nothing is compiled
    recipe = SdxlRecipe(untrained_sdxl, untrained_sd3)
    part = DenoiserPart(recipe, data, data, batch=8)
    loss = part.loss(0, torch.Generator().manual_seed(0))
    loss.backward()
    assert all(p.grad is not None for p in part.modules.parameters())
    for parameter in part.modules.parameters():
        parameter.grad = None
    assert all(p.grad is None for p in untrained_sdxl.text_encoder.parameters())
    seen: list[Tensor] = []
    monkeypatch.setattr(recipe, "loss", lambda batch, generator: seen.append(batch.t5))
    for iteration in (0, recipe.placed_iterations - 1, recipe.placed_iterations):
        part.loss(iteration, torch.Generator().manual_seed(iteration))
    allowed = {tuple(ids.tolist()) for ids in data.t5[data.placed]}
    drawn = [{tuple(ids.tolist()) for ids in t5} for t5 in seen]
    assert drawn[0] | drawn[1] <= allowed
    assert not drawn[2] <= allowed
