"""From a finished run to `data/models`: weights, measured figures, pictures, model card."""

from __future__ import annotations

import os
import platform
import shutil
import textwrap
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor
from torchvision.utils import make_grid, save_image

from tmpdiff_bench.errors import check_known
from tmpdiff_bench.pipelines.embedded import call_defaults, pipeline_class
from tmpdiff_bench.zoo.build import TRAINING_SCENES, recipe_of, trained_vae
from tmpdiff_bench.zoo.captions import Requirement
from tmpdiff_bench.zoo.denoising import DenoiserPart, sample_images, scene_accuracy
from tmpdiff_bench.zoo.latents import LatentSet, reconstruction_psnr
from tmpdiff_bench.zoo.prompts import mixed_prompts
from tmpdiff_bench.zoo.recogniser import RecogniserPart, load_recogniser
from tmpdiff_bench.zoo.scenes import render, sample_scenes
from tmpdiff_bench.zoo.training import load_average, read_log

STEPS = 20  # of the figures in the cards


_CARDS = tomllib.loads(Path(__file__).with_name("cards.toml").read_text(encoding="utf-8"))
ABOUT = {name: about for name, about in _CARDS.items() if name != "parts"}


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
        "parameters": parameters(part.recogniser),
        "objects read right on 1,000 validation renders": f"{measured['render_accuracy']:.2%}",
        "the same after the VAE (256 renders)": f"{measured['decoded_accuracy']:.2%}",
        **_training_figures(state),
    }
    text = f"""# Scenes recogniser

Reads shape, colour, size and cell of every object, and the background, from a 64 px Scenes image.
It judges whether an image shows what its prompt says. An object counts as read right when shape,
colour, size and cell all are.

{figures_table(figures)}

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
    check_known("model", name, ABOUT)
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
    loss_curve(runs / name, pictures / "loss.png", f"embedded {name}: training loss")
    sample_grid(images[:24], list(prompts["text"])[:24], pictures / "samples.png")
    if name == "sd3":
        scenes = torch.from_numpy(render(sample_scenes(48, seed=3, split="validation")))
        grid = make_grid(scenes, nrow=12, padding=2, pad_value=1.0)
        save_image(grid.repeat_interleave(2, 1).repeat_interleave(2, 2), pictures / "scenes.png")
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
        name: parameters(parts[name]),
        "text encoders": parameters(torch.nn.ModuleList(encoders)),
        "VAE": parameters(pipeline.vae),
        "VAE reconstruction, 512 held-out scenes": f"{psnr:.1f} dB PSNR",
    }


def _card(name: str, runs: Path, figures: dict[str, str], groups: pd.DataFrame) -> str:
    about, parts = ABOUT[name], _CARDS["parts"]
    told = {"data": parts["data"].format(scenes=TRAINING_SCENES)}
    if "{t5}" in about["training"]:
        last = [r for r in read_log(runs / "t5") if "unexplained_plain" in r][-1]
        key = "unexplained_masked" if name == "pixart" else "unexplained_plain"
        told["t5"] = parts["t5"].format(explained=1 - last[key])
    training, title = about["training"].format(**told), about["title"]
    call = ", ".join(f"{key}={value!r}" for key, value in call_defaults(name).items())
    notes = runs / name / "notes.txt"  # what the run did otherwise than today's code would
    encoders = "" if name == "sd3" else " but sd3's text encoders"
    others = "vae|recogniser|sd3" if name == "sd3" else f"vae|recogniser|sd3|t5|{name}"
    return f"""# Embedded {title}

A small {title}-class model of Scenes, trained for tmpdiff_bench from nothing{encoders}.
A plain `{pipeline_class(name)}` folder; call it with
`{call}`.
Weights are bfloat16; load them in float32 for reference runs.
Accuracy is of {STEPS}-step samples, called so, one seed a prompt, read by the Scenes recogniser;
an object counts when everything that the prompt says of it is right.

![samples on held-out prompts](card/samples.png)

{figures_table(figures)}

{failure_table(groups)}

![loss](card/loss.png)

Training: {training}
{notes.read_text(encoding="utf-8").strip() if notes.exists() else ""}
Known failures are the gaps in the second table. The model knows Scenes captions only.
Rebuild: `python -m tmpdiff_bench.zoo train --model {others}`, then `... export`.
"""


def _training_figures(state: dict[str, object]) -> dict[str, str]:
    return {
        "training iterations": f"{state['iteration']:,}",
        "training time": f"{float(str(state['seconds'])) / 60:.0f} min",
        "machine": f"{os.cpu_count()} CPU cores ({platform.machine()}), torch {state['torch']}",
    }


def loss_curve(run: Path, path: Path, title: str) -> None:
    """Draw a run's training loss and validation figure against iterations."""
    records = list(read_log(run))
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for name, label in (("loss", "training (running mean)"), ("validation_loss", "validation")):
        points = [(r["iteration"], r[name]) for r in records if name in r]
        if points:
            axes.plot(*zip(*points, strict=True), label=label)
    axes.set(xlabel="iteration", ylabel="loss", title=title, yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def sample_grid(images: Tensor, prompts: Sequence[str], path: Path, *, columns: int = 6) -> None:
    """Draw images (n, 3, H, W) in [0, 1] with their prompts underneath."""
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(1.7 * columns, 2.25 * rows), layout="constrained"
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, prompt in zip(axes.flat, images, prompts, strict=False):
        axis.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
        axis.set_title("\n".join(textwrap.wrap(prompt, 26)), fontsize=7, y=-0.05, va="top")
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def figures_table(figures: Mapping[str, object]) -> str:
    """A two-column markdown table."""
    lines = [f"| {name} | {value} |" for name, value in figures.items()]
    return "\n".join(["| figure | measured |", "|---|---|", *lines])


def failure_table(frame: pd.DataFrame) -> str:
    """A markdown table of accuracy by group, from columns group, images, objects, scenes."""
    lines = ["| prompts | images | object accuracy | everything right |", "|---|---|---|---|"]
    for row in frame.itertuples():
        lines.append(f"| {row.group} | {row.images} | {row.objects:.1%} | {row.scenes:.1%} |")
    return "\n".join(lines)


def parameters(module: torch.nn.Module) -> str:
    """Parameter count such as "3.57 M"."""
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f} M"
