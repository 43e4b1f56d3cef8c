"""Model cards and their pictures, written from measured figures only."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch import Tensor

from tmpdiff_bench.zoo.training import read_log


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
