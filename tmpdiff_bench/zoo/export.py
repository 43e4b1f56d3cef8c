"""From a finished run to `data/models`: weights, measured figures, pictures, model card."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

from tmpdiff_bench.errors import unknown
from tmpdiff_bench.pipelines.embedded import call_defaults, pipeline_class
from tmpdiff_bench.zoo import card
from tmpdiff_bench.zoo.build import TRAINING_SCENES, recipe_of, trained_vae
from tmpdiff_bench.zoo.captions import Requirement
from tmpdiff_bench.zoo.denoising import DenoiserPart
from tmpdiff_bench.zoo.evaluation import (
    load_recogniser,
    picture_grid,
    sample_images,
    scene_accuracy,
)
from tmpdiff_bench.zoo.latents import LatentSet
from tmpdiff_bench.zoo.prompts import mixed_prompts
from tmpdiff_bench.zoo.recogniser import RecogniserPart
from tmpdiff_bench.zoo.scenes import render, sample_scenes
from tmpdiff_bench.zoo.training import load_average, read_log
from tmpdiff_bench.zoo.vae import reconstruction_psnr

STEPS = 20  # of the figures in the cards


@dataclass(frozen=True)
class About:
    """What a card says of a model besides figures: its name, how it was trained."""

    title: str
    training: str


_DATA = (
    f"prompt dropout 0.1, averaged weights, {TRAINING_SCENES:,} scenes with four\n"
    "captions each (English 50 %, German 25 %, Spanish 25 %)."
)
_T5 = (
    "The T5 encoder was trained first, to give for every word what sd3's transformer gets for it\n"
    "from CLIP; {explained} of the variance of these states on held-out captions is explained."
)
ABOUT = {
    "sd3": About(
        "Stable Diffusion 3",
        "Muon for hidden matrices and AdamW for all else, batch 64, noise levels uniform over\n"
        f"the sampler's steps, {_DATA}",
    ),
    "flux": About(
        "FLUX.1",
        "the transformer alone, by flow matching, with Muon for hidden matrices and AdamW for all\n"
        f"else, batch 64, noise levels uniform over the sampler's steps, {_DATA}\n"
        "It is not guidance-distilled. VAE and CLIP encoder are those of the embedded sd3,\n"
        "unchanged.\n" + _T5,
    ),
    "pixart": About(
        "PixArt-Sigma",
        "the transformer alone, on velocities (not PixArt's noise), with PixArt's linear betas,\n"
        "timesteps uniform, Muon for hidden matrices and AdamW for all else, batch 64,\n"
        f"{_DATA}\nThe VAE is that of the embedded sd3; its shift is left out, as this pipeline\n"
        "has none. The pipeline lowers the case of prompts, so the tokenizer knows lower case.\n"
        + _T5,
    ),
    "sdxl": About(
        "Stable Diffusion XL",
        "the UNet alone, on velocities (not SDXL's noise), with linear betas, timesteps uniform,\n"
        f"Muon for matrices of the blocks and AdamW for all else, batch 64, {_DATA}\n"
        "VAE and CLIP encoders are those of the embedded sd3; the VAE's shift is left out, as\n"
        "this pipeline has none.",
    ),
}


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


def export_model(name: str, runs: Path, models: Path) -> dict[str, str]:
    """Write a pipeline with its card, sample grid and loss curve into `models/NAME`; returns the
    card's figures.

    Raises:
        UsageError: the model is unknown or has not been trained.
    """
    if name not in ABOUT:
        raise unknown("model", name, ABOUT)
    recipe = recipe_of(name, runs)
    nothing = LatentSet(*[torch.empty(0)] * 4)
    state = load_average(DenoiserPart(recipe, nothing, nothing), runs / name)
    shipped, folder = models / name, models / f".{name}.new"
    shutil.rmtree(folder, ignore_errors=True)
    recipe.pipeline.to(torch.bfloat16).save_pretrained(folder, safe_serialization=True)
    # measured as users get it: loaded from the files, in float32
    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    prompts = mixed_prompts(384, "evaluation")
    images = sample_images(pipeline, name, prompts, steps=STEPS)
    groups, whole = _accuracies(images, prompts)
    pictures = folder / "card"
    pictures.mkdir()
    card.loss_curve(runs / name, pictures / "loss.png", f"embedded {name}: training loss")
    card.sample_grid(images[:24], list(prompts["text"])[:24], pictures / "samples.png")
    if name == "sd3":
        scenes = torch.from_numpy(render(sample_scenes(48, seed=3, split="validation")))
        picture_grid(scenes, 12, pictures / "scenes.png")
    figures = {**_sizes(pipeline), **whole, **_training_figures(state)}
    (folder / "README.md").write_text(_card(name, runs, figures, groups), encoding="utf-8")
    shutil.rmtree(shipped, ignore_errors=True)
    folder.rename(shipped)
    return figures


def _accuracies(images: torch.Tensor, prompts: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str]]:
    """Accuracy by prompt set and language, and figures over all."""
    requirements = [Requirement.from_json(r) for r in prompts["requirement"]]
    recogniser = load_recogniser()
    whole = scene_accuracy(recogniser, images, requirements)
    groups = []
    for column in ("dataset", "language"):
        for value, rows in prompts.groupby(column).groups.items():
            index = list(rows)
            found = scene_accuracy(recogniser, images[index], [requirements[i] for i in index])
            groups.append({"group": value, **vars(found)})
    figures = {
        f"object accuracy, {whole.images} held-out prompts": f"{whole.objects:.1%}",
        "images with everything right": f"{whole.scenes:.1%}",
    }
    return pd.DataFrame(groups), figures


def _sizes(pipeline: Any) -> dict[str, str]:
    """Parameter counts, and how well the VAE reconstructs."""
    parts = pipeline.components
    encoders = [parts[k] for k in sorted(parts) if k.startswith("text_encoder")]
    name = "transformer" if "transformer" in parts else "unet"
    validation = torch.from_numpy(render(sample_scenes(512, seed=0, split="validation"))) * 2 - 1
    with torch.no_grad():
        psnr = reconstruction_psnr(pipeline.vae, validation)
    return {
        name: card.parameters(parts[name]),
        "text encoders": card.parameters(torch.nn.ModuleList(encoders)),
        "VAE": card.parameters(pipeline.vae),
        "VAE reconstruction, 512 held-out scenes": f"{psnr:.1f} dB PSNR",
    }


def _card(name: str, runs: Path, figures: dict[str, str], groups: pd.DataFrame) -> str:
    about = ABOUT[name]
    training = about.training
    if "{explained}" in training:
        last = [r for r in read_log(runs / "t5") if "unexplained_plain" in r][-1]
        key = "unexplained_masked" if name == "pixart" else "unexplained_plain"
        training = training.replace("{explained}", f"{1 - last[key]:.1%}")
    call = ", ".join(f"{key}={value!r}" for key, value in call_defaults(name).items())
    encoders = "" if name == "sd3" else " but sd3's text encoders"
    others = "vae|recogniser|sd3" if name == "sd3" else f"vae|recogniser|sd3|t5|{name}"
    return f"""# Embedded {about.title}

A small {about.title}-class model of Scenes, trained for tmpdiff_bench from nothing{encoders}.
A plain `{pipeline_class(name)}` folder; call it with
`{call}`.
Weights are bfloat16; load them in float32 for reference runs.
Accuracy is of {STEPS}-step samples, called so, one seed a prompt, read by the Scenes recogniser;
an object counts when everything that the prompt says of it is right.

![samples on held-out prompts](card/samples.png)

{card.figures_table(figures)}

{card.failure_table(groups)}

![loss](card/loss.png)

Training: {training}
{_history(runs / name)}
Known failures are the gaps in the second table. The model knows Scenes captions only.
Rebuild: `python -m tmpdiff_bench.zoo train --model {others}`, then `... export`.
"""


def _history(run: Path) -> str:
    """What the run did otherwise than today's code would: notes.txt in its folder."""
    notes = run / "notes.txt"
    return notes.read_text(encoding="utf-8").strip() if notes.exists() else ""


def _training_figures(state: dict[str, object]) -> dict[str, str]:
    return {
        "training iterations": f"{state['iteration']:,}",
        "training time": f"{float(str(state['seconds'])) / 60:.0f} min",
        "machine": f"{os.cpu_count()} CPU cores ({platform.machine()}), torch {state['torch']}",
    }
