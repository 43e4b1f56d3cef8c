"""Figure: rooflines' speedups over bf16, per model, hardware and level."""

from __future__ import annotations

from collections.abc import Iterator

from matplotlib.artist import Artist
from matplotlib.axes import Axes

from analysis.base import FigureFile, Made, Reports, Script
from tmpdiff_bench.commands import run
from tmpdiff_bench.costs import load_costs
from tmpdiff_bench.report.style import Drawing, canvas, house_style, level_colours

MODELS = ("sd3", "flux", "pixart", "sdxl")
HARDWARE = ("rtx5090", "rtx4090", "b200", "h200", "h100", "a100")  # from the bottom up
# filled above hollow, so that two levels of one speed both show
LEVELS = {"w8a8": ("o", 8.0), "fp8": ("D", 3.5), "w4a4": ("s", 6.0), "nvfp4": ("^", 6.5)}


def draw(ax: Axes, model: str) -> None:
    """One row per chip, one mark per level that it has."""
    colours = level_colours(list(LEVELS))
    for row, hardware in enumerate(HARDWARE):
        table = load_costs(f"roofline-{model}-{hardware}-1024")
        for level, (marker, size) in LEVELS.items():
            if level in table.levels:
                speedup = table.levels["bf16"].ms / table.levels[level].ms
                face = "none" if level == "w8a8" else colours[level]
                ax.plot(speedup, row, marker, ms=size, mfc=face, mec=colours[level], label=level)
    ax.set_yticks(range(len(HARDWARE)), [name.upper() for name in HARDWARE])
    ax.set_title(table.model.partition(" at ")[0])
    ax.axvline(1, color="#666666", lw=0.8)


def make(_: Reports) -> Iterator[Made]:
    """The figure."""
    with house_style():
        figure, axes = canvas(2, 2, 4.4, sharex=True, sharey=True)
        for ax, model in zip([*axes[0], *axes[1]], MODELS, strict=True):
            draw(ax, model)
        found: dict[str, Artist] = {}
        for ax in (*axes[0], *axes[1]):
            handles, names = ax.get_legend_handles_labels()
            found.update(zip(names, handles, strict=True))
        handles = [found[level] for level in LEVELS]
        figure.legend(handles, list(LEVELS), loc="outside upper center", ncols=len(LEVELS))
        figure.supxlabel("least time of a step at bf16 / at the level")
    yield Drawing(
        "roofline-speedups",
        "What a level saves at the roofline",
        "Rooflines of true-size models at 1024 x 1024; a level that is missing is one that the "
        "hardware has no rate for.",
        "Dots of speedups between 1 and 3.3 for four models on six graphics cards.",
        figure,
    )


SCRIPT = Script(
    "costs",
    make,
    inputs=("data/costs/roofline-*.json",),
    outputs=(FigureFile("roofline-speedups"),),
)

if __name__ == "__main__":
    run(SCRIPT.main)
