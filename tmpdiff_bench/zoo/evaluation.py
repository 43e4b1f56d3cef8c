"""Measuring an embedded model: does the image show what the prompt says?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.noise import generator_seed
from tmpdiff_bench.pipelines.calls import Call
from tmpdiff_bench.pipelines.embedded import call_defaults
from tmpdiff_bench.resources import data_folder
from tmpdiff_bench.zoo.captions import Requirement
from tmpdiff_bench.zoo.recogniser import Recogniser, judge, read


@dataclass(frozen=True)
class SceneAccuracy:
    """Figures over images: share of asked objects found; share of images right in everything."""

    objects: float
    scenes: float
    images: int


def load_recogniser() -> Recogniser:
    """The recogniser that ships with the library."""
    path = data_folder() / "models" / "recogniser" / "model.safetensors"
    if not path.is_file():
        raise UsageError(
            "the recogniser's weights are not in this installation: reinstall the package, or "
            "train them with `python -m tmpdiff_bench.zoo train --model recogniser`"
        )
    with torch.device("meta"):  # built elsewhere it would draw weights from the global stream
        recogniser = Recogniser()
    weights = {name: weight.float() for name, weight in load_file(path).items()}
    recogniser.load_state_dict(weights, assign=True)
    return recogniser.eval()


def scene_accuracy(
    recogniser: Recogniser, images: Tensor, requirements: Sequence[Requirement]
) -> SceneAccuracy:
    """Accuracy of images (n, 3, 64, 64) in [0, 1] against what was asked of each."""
    verdicts = [
        judge(requirement, reading)
        for requirement, reading in zip(requirements, read(recogniser, images), strict=True)
    ]
    return SceneAccuracy(
        objects=sum(v.found for v in verdicts) / sum(v.asked for v in verdicts),
        scenes=sum(v.all for v in verdicts) / len(verdicts),
        images=len(verdicts),
    )


@torch.no_grad()
def sample_images(
    pipeline: Any,
    model: str,
    prompts: pd.DataFrame,
    *,
    steps: int = 20,
    seed: int = 0,
    batch: int = 32,
) -> Tensor:
    """Images (n, 3, 64, 64) in [0, 1] of a pipeline, called as the embedded `model` is."""
    pipeline.set_progress_bar_config(disable=True)
    call = Call(
        shared={**call_defaults(model), "num_inference_steps": steps, "output_type": "pt"},
        each={"prompt": list(prompts["text"])},
        seeds=[generator_seed(prompt, seed) for prompt in prompts["prompt_id"]],
    )
    found = []
    for start in tqdm(range(0, len(call), batch), desc="sampling", unit="batch", leave=False):
        rows = range(start, min(start + batch, len(call)))
        found.append(pipeline(**call.rows(rows).arguments()).images.float().cpu())
    return torch.cat(found)


def picture_grid(images: Tensor, columns: int, path: Path, *, scale: int = 2) -> None:
    """Save images (n, 3, H, W) in [0, 1] as one PNG, row by row."""
    from PIL import Image
    from torchvision.utils import make_grid

    grid = make_grid(images, nrow=columns, padding=2, pad_value=1.0)
    pixels = (grid * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels)
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST).save(
        path, optimize=True
    )
