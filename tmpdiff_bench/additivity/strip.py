"""The image strip: what the errors look like."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from tmpdiff_bench.additivity.style import WIDTH, Drawing, house_style
from tmpdiff_bench.plan import PrecisionPlan

if TYPE_CHECKING:
    from tmpdiff_bench.trajectory import Recording

_ROWS, _SINGLES = 4, 3
_GAP, _LINE = 0.06, 0.17  # inches: between images, and of a line of text


def image_strip(recording: Recording) -> Drawing | None:
    """Reference, some single runs and the all-low runs; None for a recording without pictures."""
    columns = _columns(recording)
    rows = _rows(recording)
    if not rows or "reference" not in columns.values():
        return None
    prompts = [textwrap.fill(recording.prompts[prompt_id], 86) for _, prompt_id in rows]
    side = (WIDTH + _GAP) / len(columns) - _GAP
    bands = [side + _GAP + _LINE * (1 + prompt.count("\n")) for prompt in prompts]
    height = sum(bands) + 1.9 * _LINE
    with house_style():
        figure = Figure(figsize=(WIDTH, height))
        for column, header in enumerate(columns):
            middle = (column * (side + _GAP) + side / 2) / WIDTH
            figure.text(middle, 1, header, ha="center", va="top", fontsize=8)
        bottom = height - 1.9 * _LINE
        for (row, _), prompt, band in zip(rows, prompts, bands, strict=True):
            bottom -= band
            figure.text(
                0,
                (bottom + side + 0.04) / height,
                prompt,
                va="bottom",
                fontsize=8.5,
                style="italic",
            )
            for column, key in enumerate(columns.values()):
                left = column * (side + _GAP) / WIDTH
                ax = figure.add_axes((left, bottom / height, side / WIDTH, side / height))
                ax.imshow(recording.pictures[key][row], interpolation="none")
                ax.axis("off")
    headers = ", ".join(header.replace("\n", " ") for header in columns)
    return Drawing(
        name="image-strip",
        title="What the errors look like",
        caption=(
            "Read each row from the left: the reference image of a prompt, the same with one step "
            "at the low level, and the same with every step at each level."
        ),
        alt=f"Generated images, columns {headers}; rows " + "; ".join(prompts) + ".",
        figure=figure,
    )


def _rows(recording: Recording) -> list[tuple[int, str]]:
    """The first pictured sample of each of the first prompts: (row in the pictures, prompt id)."""
    first: dict[str, int] = {}
    for row, sample in enumerate(recording.picture_rows):
        first.setdefault(recording.samples[sample][0], row)
    return [(row, prompt_id) for prompt_id, row in first.items()][:_ROWS]


def _columns(recording: Recording) -> dict[str, str]:
    """Header to key in `pictures`, of what was pictured."""
    reference, *low_levels = recording.levels
    singles = {
        f"step {step}\n{low_levels[-1]}": str(
            PrecisionPlan.single(reference, low_levels[-1], step, recording.steps)
        )
        for step in range(recording.steps)
    }
    singles = {header: key for header, key in singles.items() if key in recording.pictures}
    spread = np.linspace(0, len(singles) - 1, min(_SINGLES, len(singles))).round().astype(int)
    chosen = [list(singles.items())[index] for index in spread]
    all_low = {
        f"all steps\n{level}": str(PrecisionPlan.uniform(level, recording.steps))
        for level in low_levels
    }
    columns = {f"reference\n{reference}": "reference"} | dict(chosen) | all_low
    return {header: key for header, key in columns.items() if key in recording.pictures}
