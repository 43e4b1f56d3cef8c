"""Figures: images of the reference beside those of plans at matched speedup, one per model."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.base import FigureFile, Made, Reports, Script
from analysis.suite_data import (
    FOLDER,
    INPUTS,
    REFERENCE,
    allocator_label,
    chosen_on_calibration,
    results,
)
from tmpdiff_bench.commands import run
from tmpdiff_bench.prompts import prompt_source
from tmpdiff_bench.report.style import WIDTH, Drawing, house_style
from tmpdiff_bench.suite import SuiteResults, picture_name
from tmpdiff_bench.suite.v1 import MODELS

ALLOCATORS = ("uniform", "fewer_steps", "first_last", "bisection", "gram")
ROWS = 2  # prompts of each prompt set
_GAP, _LINE = 0.05, 0.15  # inches: between images, and of a line of text


def chosen(found: SuiteResults, model: str) -> pd.DataFrame:
    """Allocations of one task per prompt set: most steps, most levels, the middle target. The
    plan of least calibration error is added, if it is none of `ALLOCATORS`.
    """
    rows = found.allocations
    rows = rows[(rows["model"] == model) & (rows["status"] == "ok")]
    rows = rows[rows["steps"] == rows["steps"].max()]
    most = max(rows["levels"], key=lambda names: len(names.split()))
    rows = rows[rows["levels"] == most]
    targets = sorted(rows["target_speedup"].unique())
    rows = rows[rows["target_speedup"] == targets[len(targets) // 2]]
    best = chosen_on_calibration(found)
    best = rows.merge(best, on=["task", "allocator"]).assign(allocator="least error")
    return pd.concat([rows[rows["allocator"].isin(ALLOCATORS)], best], ignore_index=True)


def columns(rows: pd.DataFrame) -> list[str]:
    """Names of the columns, in order."""
    present = set(rows["allocator"])
    return [REFERENCE, *(name for name in (*ALLOCATORS, "least error") if name in present)]


def images(
    found: SuiteResults, rows: pd.DataFrame, names: list[str]
) -> Iterator[tuple[str, list[NDArray[np.uint8]]]]:
    """The prompt and one image per column, for the first prompts of each prompt set."""
    texts: dict[str, str] = {}
    for _, group in rows.groupby("task", sort=False):
        first = group.iloc[0]
        plans = dict(zip(group["allocator"], group["plan"], strict=True)) | {REFERENCE: REFERENCE}
        prompt_set = prompt_source(first["prompt_set"]).load().table
        texts |= dict(zip(prompt_set["prompt_id"], prompt_set["text"], strict=True))
        place = (first["model"], first["prompt_set"], int(first["steps"]))
        prompts = found.manifest["pictured"]["/".join((*place[:2], f"S{place[2]}"))]
        pictures = [
            found.pictures.get(picture_name(*place, plans[name])) if name in plans else None
            for name in names
        ]
        shown = min(len(stack) for stack in pictures if stack is not None)
        for index in range(min(ROWS, shown)):
            blank = np.full_like(found.pictures[picture_name(*place, REFERENCE)][0], 255)
            line = [blank if stack is None else stack[index] for stack in pictures]
            yield texts.get(prompts[index], prompts[index]), line


def figure(found: SuiteResults, model: str) -> Drawing:
    """The grid of one model."""
    rows = chosen(found, model)
    names = columns(rows)
    lines = list(images(found, rows, names))
    side = (WIDTH + _GAP) / len(names) - _GAP
    band = side + _LINE + _GAP
    headers = [textwrap.fill(allocator_label(name), 11) for name in names]
    top = (0.2 + max(header.count("\n") + 1 for header in headers)) * _LINE
    height = band * len(lines) + top
    target = float(rows["target_speedup"].iloc[0])
    with house_style():
        drawn = Figure(figsize=(WIDTH, height))
        for column, header in enumerate(headers):
            middle = (column * (side + _GAP) + side / 2) / WIDTH
            drawn.text(middle, 1, header, ha="center", va="top", fontsize=7.5)
        bottom = height - top
        for prompt, pictures in lines:
            bottom -= band
            drawn.text(0, (bottom + side + 0.03) / height, prompt, va="bottom", fontsize=7)
            for column, picture in enumerate(pictures):
                left = column * (side + _GAP) / WIDTH
                ax = drawn.add_axes((left, bottom / height, side / WIDTH, side / height))
                ax.imshow(picture, interpolation="none")  # pixels as they are, in small files
                ax.axis("off")
    title = found.manifest["titles"][model]
    return Drawing(
        f"grid-{model}",
        f"Images at matched speedup: {title}",
        f"Each row is one evaluation prompt and noise; plans for a speedup of {target:g} at "
        f"{rows['steps'].iloc[0]} steps, levels {rows['levels'].iloc[0]}. Least error: the plan of "
        "least calibration error of all allocators.",
        f"Generated images of {title}, columns {', '.join(map(allocator_label, names))}; rows "
        + ", ".join(prompt for prompt, _ in lines)
        + ".",
        drawn,
    )


def make(reports: Reports) -> Iterator[Made]:
    """A figure per model that ran."""
    found = results(reports.folder)
    for model in dict.fromkeys(found.scores["model"]):
        yield figure(found, model)


SCRIPT = Script(
    "grids",
    make,
    inputs=(*INPUTS, f"{FOLDER}/pictures.safetensors"),
    outputs=tuple(FigureFile(f"grid-{model}", optional=True) for model in MODELS),
)

if __name__ == "__main__":
    run(SCRIPT.main)
