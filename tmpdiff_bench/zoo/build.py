"""Training of each part in its run folder; `zoo.export` makes of it what ships.

Order: `vae`, `recogniser` (it looks at decoded images too), `sd3`; then, on the encoders of the sd3
that ships, `t5` and from it `pixart` and `flux`, and `sdxl`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from transformers import T5EncoderModel, T5TokenizerFast

from tmpdiff_bench.errors import UsageError, check_known
from tmpdiff_bench.files import data_folder
from tmpdiff_bench.zoo import flux, pixart, sdxl
from tmpdiff_bench.zoo.denoising import DenoiserPart, Recipe
from tmpdiff_bench.zoo.flux import FluxRecipe
from tmpdiff_bench.zoo.latents import LatentSet, VaePart, build_latents, latent_statistics
from tmpdiff_bench.zoo.pixart import PixArtRecipe
from tmpdiff_bench.zoo.recogniser import RecogniserPart
from tmpdiff_bench.zoo.sd3 import Sd3Recipe, build_pipeline, take_weights
from tmpdiff_bench.zoo.sdxl import SdxlRecipe
from tmpdiff_bench.zoo.text import T5Part, load_t5, save_t5
from tmpdiff_bench.zoo.training import Part, Schedule, load_average, train

TRAINING_SCENES, VALIDATION_SCENES = 49_152, 1_024
_SCHEDULES = {
    "vae": Schedule(1600, 2e-3, weight_decay=0.0, decay_fraction=0.3),
    "recogniser": Schedule(1200, 2e-3, decay_fraction=0.5, average_decay=0.995),
    "sd3": Schedule(14000, 1e-3),
    "t5": Schedule(1300, 3e-3, weight_decay=0.0, decay_fraction=0.6, average_decay=0.99),
    "pixart": Schedule(4000, 1.5e-3, decay_fraction=0.5, average_decay=0.998),
    "flux": Schedule(3600, 1.5e-3, decay_fraction=0.5, average_decay=0.998),
    "sdxl": Schedule(3000, 1.5e-3, decay_fraction=0.5, average_decay=0.998),
}


def train_part(
    name: str,
    runs: Path,
    *,
    iterations: int | None = None,
    seed: int = 0,
    start_from: Path | None = None,
) -> None:
    """Train a part up to `iterations` in `runs/name`, going on with what is there.

    A new run of `sd3` takes its transformer from the pipeline folder `start_from`, if given.

    Raises:
        UsageError: the part is unknown, or one that it builds on has not been trained.
    """
    check_known("part", name, _SCHEDULES)
    schedule = _SCHEDULES[name]
    if iterations is not None:
        schedule = replace(schedule, iterations=iterations)
    train(_part(name, runs, seed, start_from), schedule, runs / name, seed=seed)


def _part(name: str, runs: Path, seed: int, start_from: Path | None) -> Part:
    if start_from is not None and name != "sd3":
        raise UsageError(f"--start-from is for sd3 alone, not for {name}")
    if name == "vae":
        return VaePart(seed=seed)
    vae = trained_vae(runs)
    if name == "recogniser":
        return RecogniserPart(vae, seed=seed)
    if name == "t5":
        source = shipped_sd3()
        return T5Part(source, *scene_data(runs, source), seed=seed)
    recipe = recipe_of(name, runs, seed)
    if start_from is not None:
        take_weights(recipe.pipeline, start_from)
    tokenizers = recipe.pipeline if name == "sd3" else shipped_sd3()
    return DenoiserPart(recipe, *scene_data(runs, tokenizers))


def recipe_of(name: str, runs: Path, seed: int = 0) -> Recipe:
    """How a denoiser is trained, around an untrained one."""
    vae = trained_vae(runs)
    if name == "sd3":
        return Sd3Recipe(build_pipeline(vae, seed=seed))
    source = shipped_sd3()
    if name == "sdxl":
        return SdxlRecipe(sdxl.build_pipeline(source, vae, seed=seed), source)
    if name == "pixart":
        return PixArtRecipe(pixart.build_pipeline(vae, *trained_t5(runs), seed=seed), source)
    return FluxRecipe(flux.build_pipeline(source, vae, *trained_t5(runs), seed=seed))


def scene_data(runs: Path, pipeline: StableDiffusion3Pipeline) -> tuple[LatentSet, LatentSet]:
    """Training and validation data of every denoiser, with the tokens of sd3's tokenizers."""
    tokenizers = (pipeline.tokenizer, pipeline.tokenizer_3)
    folder = runs / "sd3"
    folder.mkdir(parents=True, exist_ok=True)
    vae = trained_vae(runs)

    def cached(path: Path, build: Callable[[], LatentSet]) -> LatentSet:
        if not path.exists():
            build().save(path)
        return LatentSet.load(path)

    validation = cached(
        folder / "validation.safetensors",
        lambda: build_latents(
            vae, tokenizers, VALIDATION_SCENES, seed=0, captions_per_scene=1, reserved=True
        ),
    )
    training = cached(
        folder / "training.safetensors",
        lambda: build_latents(vae, tokenizers, TRAINING_SCENES, seed=1),
    )
    return training, validation


def shipped_sd3() -> StableDiffusion3Pipeline:
    """The embedded sd3: its text encoders serve the other models.

    Raises:
        UsageError: it is not in this installation.
    """
    folder = data_folder() / "models" / "sd3"
    if not folder.is_dir():
        raise UsageError(f"{folder} is not there: the other models take sd3's text encoders")
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )
    for encoder in (pipeline.text_encoder, pipeline.text_encoder_2):
        encoder.eval().requires_grad_(False)
    return pipeline


def trained_t5(runs: Path) -> tuple[T5TokenizerFast, T5EncoderModel]:
    """Tokenizer and encoder of a finished run, in the bfloat16 values that they ship with."""
    folder = runs / "t5" / "model"
    if not folder.is_dir():
        _require_run("t5", runs)
        source = shipped_sd3()
        part = T5Part(source, *scene_data(runs, source))
        load_average(part, runs / "t5")
        save_t5(part, folder)
    return load_t5(folder)


def trained_vae(runs: Path) -> AutoencoderKL:
    """The VAE of a finished run, in the bfloat16 values that it ships with, with its latents'
    scaling set to unit variance.
    """
    model = runs / "vae" / "model"
    if not model.is_dir():
        _require_run("vae", runs)
        part = VaePart()
        load_average(part, runs / "vae")
        vae = part.vae.to(torch.bfloat16).to(torch.float32)
        mean, deviation = latent_statistics(vae)
        vae.register_to_config(scaling_factor=1 / deviation, shift_factor=mean)
        vae.to(torch.bfloat16).save_pretrained(model)
    vae = AutoencoderKL.from_pretrained(model, dtype=torch.float32)
    return vae.eval().requires_grad_(False)


def _require_run(part: str, runs: Path) -> None:
    if not (runs / part / "state.safetensors").exists():
        raise UsageError(
            f"there is no trained {part} in {runs}: run "
            f"`python -m tmpdiff_bench.zoo train --model {part} --runs {runs}` first"
        )
