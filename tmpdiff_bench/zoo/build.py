"""From nothing to `data/models`: train each part in its run folder, then export what was trained.

Order: `vae`, `recogniser` (it looks at decoded images too), `sd3`.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from safetensors.torch import save_file

from tmpdiff_bench.errors import UsageError, unknown
from tmpdiff_bench.zoo import card
from tmpdiff_bench.zoo.captions import Requirement
from tmpdiff_bench.zoo.evaluation import (
    load_recogniser,
    picture_grid,
    sample_images,
    scene_accuracy,
)
from tmpdiff_bench.zoo.latents import LatentSet, build_latents, latent_statistics
from tmpdiff_bench.zoo.prompts import mixed_prompts
from tmpdiff_bench.zoo.recogniser import RecogniserPart
from tmpdiff_bench.zoo.scenes import render, sample_scenes
from tmpdiff_bench.zoo.sd3 import Sd3Part, build_pipeline, take_weights
from tmpdiff_bench.zoo.text import MAX_TOKENS
from tmpdiff_bench.zoo.training import Part, Schedule, load_average, train
from tmpdiff_bench.zoo.vae import VaePart, reconstruction_psnr

TRAINING_SCENES, VALIDATION_SCENES = 49_152, 1_024
GUIDANCE, STEPS = 4.0, 20  # of the figures in the cards
_SCHEDULES = {
    "vae": Schedule(1600, 2e-3, weight_decay=0.0, decay_fraction=0.3),
    "recogniser": Schedule(1200, 2e-3, decay_fraction=0.5, average_decay=0.995),
    "sd3": Schedule(14000, 1e-3),
}
PARTS = tuple(_SCHEDULES)


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
    if name not in _SCHEDULES:
        raise unknown("part", name, _SCHEDULES)
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
    pipeline = build_pipeline(vae, seed=seed)
    if start_from is not None:
        take_weights(pipeline, start_from)
    tokenizers = (pipeline.tokenizer, pipeline.tokenizer_3)
    folder = runs / name
    folder.mkdir(parents=True, exist_ok=True)

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
    return Sd3Part(pipeline, training, validation)


def trained_vae(runs: Path) -> AutoencoderKL:
    """The VAE of a finished run, in the bfloat16 values that it ships with, with its latents'
    scaling set to unit variance.
    """
    model = runs / "vae" / "model"
    if not model.is_dir():
        if not (runs / "vae" / "state.safetensors").exists():
            raise UsageError(
                f"there is no trained VAE in {runs}: run "
                f"`python -m tmpdiff_bench.zoo train --model vae --runs {runs}` first"
            )
        part = VaePart()
        load_average(part, runs / "vae")
        vae = part.vae.to(torch.bfloat16).to(torch.float32)
        mean, deviation = latent_statistics(vae)
        vae.register_to_config(scaling_factor=1 / deviation, shift_factor=mean)
        vae.to(torch.bfloat16).save_pretrained(model)
    vae = AutoencoderKL.from_pretrained(model, dtype=torch.float32)
    return vae.eval().requires_grad_(False)


def export_recogniser(runs: Path, models: Path) -> dict[str, str]:
    """Write the recogniser and its card into `models/recogniser`; returns the card's figures."""
    part = RecogniserPart(trained_vae(runs))
    state = load_average(part, runs / "recogniser")
    part.recogniser.to(torch.bfloat16).to(torch.float32)
    measured = part.evaluate()
    folder = models / "recogniser"
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.to(torch.bfloat16) for k, v in part.recogniser.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    figures = {
        "parameters": card.parameters(part.recogniser),
        "objects read right on 1,000 validation renders": f"{measured['render_accuracy']:.2%}",
        "the same after the VAE (256 renders)": f"{measured['decoded_accuracy']:.2%}",
        **_training_figures(state),
    }
    text = f"""# Scenes recogniser

Reads shape, colour, size and cell of every object, and the background, from a 64 px Scenes image.
It judges whether an image shows what its prompt says. An object counts as read right when shape,
colour, size and cell all are.

{card.figures_table(figures)}

It knows Scenes only: other images give confident nonsense.
Rebuild: `python -m tmpdiff_bench.zoo train --model recogniser`, then `... export`.
"""
    (folder / "README.md").write_text(text, encoding="utf-8")
    return figures


def export_sd3(runs: Path, models: Path) -> dict[str, str]:
    """Write the pipeline with its card, sample grid and loss curve into `models/sd3`."""
    vae = trained_vae(runs)
    pipeline = build_pipeline(vae, seed=0)
    part = Sd3Part(pipeline, *_no_data())
    state = load_average(part, runs / "sd3")
    shipped, folder = models / "sd3", models / ".sd3.new"
    shutil.rmtree(folder, ignore_errors=True)
    pipeline.to(torch.bfloat16).save_pretrained(folder, safe_serialization=True)
    # measured as users get it: loaded from the files, in float32
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, dtype=torch.float32)
    prompts = mixed_prompts(384, "evaluation")
    images = sample_images(pipeline, prompts, steps=STEPS, guidance=GUIDANCE)
    requirements = [Requirement.from_json(r) for r in prompts["requirement"]]
    recogniser = load_recogniser()
    whole = scene_accuracy(recogniser, images, requirements)
    groups = []
    for column in ("dataset", "language"):
        for value, rows in prompts.groupby(column).groups.items():
            index = list(rows)
            part_of = scene_accuracy(recogniser, images[index], [requirements[i] for i in index])
            groups.append({"group": value, **vars(part_of)})
    validation = torch.from_numpy(render(sample_scenes(512, seed=0, split="validation"))) * 2 - 1
    with torch.no_grad():
        psnr = reconstruction_psnr(pipeline.vae, validation)
    pictures = folder / "card"
    pictures.mkdir()
    card.loss_curve(runs / "sd3", pictures / "loss.png", "embedded sd3: flow-matching loss")
    card.sample_grid(images[:24], list(prompts["text"])[:24], pictures / "samples.png")
    scenes = torch.from_numpy(render(sample_scenes(48, seed=3, split="validation")))
    picture_grid(scenes, 12, pictures / "scenes.png")
    encoders = (pipeline.text_encoder, pipeline.text_encoder_2, pipeline.text_encoder_3)
    figures = {
        "transformer": card.parameters(pipeline.transformer),
        "text encoders": card.parameters(torch.nn.ModuleList(encoders)),
        "VAE": card.parameters(pipeline.vae),
        "VAE reconstruction, 512 held-out scenes": f"{psnr:.1f} dB PSNR",
        f"object accuracy, {whole.images} held-out prompts": f"{whole.objects:.1%}",
        "images with everything right": f"{whole.scenes:.1%}",
        **_training_figures(state),
    }
    text = f"""# Embedded Stable Diffusion 3

A small Stable-Diffusion-3-class model of Scenes, trained from nothing for tmpdiff_bench: a plain
`StableDiffusion3Pipeline` folder. Weights are bfloat16; load them in float32 for reference runs.
Accuracy is of {STEPS}-step samples at guidance {GUIDANCE:g} and `max_sequence_length={MAX_TOKENS}`,
one seed a prompt, read by the Scenes recogniser; an object counts when everything that the prompt
says of it is right.

![samples on held-out prompts](card/samples.png)

{card.figures_table(figures)}

{card.failure_table(pd.DataFrame(groups))}

![loss](card/loss.png)

Training: Muon for hidden matrices and AdamW for all else, batch 64, noise levels uniform over
the sampler's steps, prompt dropout 0.1, averaged weights, {TRAINING_SCENES:,} scenes with four
captions each (English 50 %, German 25 %, Spanish 25 %).
{_history(runs / "sd3")}
Known failures are the gaps in the second table. The model knows Scenes captions only.
Rebuild: `python -m tmpdiff_bench.zoo train --model vae|recogniser|sd3`, then `... export`.
"""
    (folder / "README.md").write_text(text, encoding="utf-8")
    shutil.rmtree(shipped, ignore_errors=True)
    folder.rename(shipped)
    return figures


def _history(run: Path) -> str:
    """What the run did otherwise than today's code would: notes.txt in its folder."""
    notes = run / "notes.txt"
    return notes.read_text(encoding="utf-8").strip() if notes.exists() else ""


def _no_data() -> tuple[LatentSet, LatentSet]:
    empty = LatentSet(*[torch.empty(0)] * 4)
    return empty, empty


def _training_figures(state: dict[str, object]) -> dict[str, str]:
    return {
        "training iterations": f"{state['iteration']:,}",
        "training time": f"{float(str(state['seconds'])) / 60:.0f} min",
        "machine": f"{os.cpu_count()} CPU cores ({platform.machine()}), torch {state['torch']}",
    }
