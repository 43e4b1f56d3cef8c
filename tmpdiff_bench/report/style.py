"""How figures look: colours, axes, and files whose bytes depend on their content alone."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from matplotlib.typing import RcKeyType

MIXED = "mixed"  # the plans that use several low levels
MAIN_METRIC = "latent_rmse"
MAIN_PREDICTORS = ("sum", "root_sum_squares", "gram")

WIDTH = 5.5  # inches: one text column of a paper, and still readable on a phone
INK, MUTED, GRID = "#222222", "#666666", "#e4e4e4"

# Okabe and Ito's colours, told apart under every common colour blindness
_PREDICTOR_COLOURS = {
    "sum": "#D55E00",
    "root_sum_squares": "#0072B2",
    "gram": "#009E73",
    "power_sum": "#E69F00",
    "affine_sum": "#CC79A7",
    "pairwise": "#56B4E9",
}
_METRIC_LABELS = {
    "latent_rmse": "latent RMSE",
    "latent_mse": "latent MSE",
    "image_rmse": "image RMSE",
    "one_minus_ssim": "1 - SSIM",
}
_UNITS = {"latent_rmse": "latent units", "latent_mse": "squared latent units"}

_STYLE: dict[RcKeyType, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
    "figure.facecolor": "white",
    "figure.labelsize": 9,
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same letters everywhere
    "font.size": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "path.simplify": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "tmpdiff_bench",
    "text.color": INK,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 8,
}


@dataclass(frozen=True, eq=False)
class Drawing:
    """A figure with the words that go with it: `caption` says how to read it, `alt` what it is."""

    name: str
    title: str
    caption: str
    alt: str
    figure: Figure

    def to_bytes(self, kind: Literal["svg", "png"]) -> bytes:
        """The figure as a file: no date, no program version, nothing random."""
        metadata = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}[kind]
        buffer = io.BytesIO()
        with house_style():
            self.figure.savefig(buffer, format=kind, dpi=220, metadata=metadata)
        content = buffer.getvalue()
        if kind == "svg":  # six decimals are written; five digits are a hundredth of a point
            content = re.sub(rb"\d+\.\d{3,}", lambda x: b"%.5g" % float(x[0]), content)
        return content


@contextmanager
def house_style() -> Iterator[None]:
    """Draw and save inside: matplotlib's own defaults plus ours, whatever the user has set."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def canvas(
    rows: int, columns: int, height: float, **options: Any
) -> tuple[Figure, list[list[Axes]]]:
    """A figure of the common width and its grid of axes."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, axes.tolist()


def predictor_colour(predictor: str) -> str:
    """One colour per predictor, in every figure."""
    return _PREDICTOR_COLOURS.get(predictor, MUTED)


def level_colours(levels: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Dark to light with the order of the levels, in hues that no predictor has."""
    ramp = mpl.colormaps["magma"]
    span = max(len(levels) - 1, 1)
    return {level: ramp(0.22 + 0.46 * index / span) for index, level in enumerate(levels)}


def predictor_label(predictor: str) -> str:
    """The predictor's name as words."""
    return predictor.replace("_", " ")


def level_label(level: str) -> str:
    """The level's name, or what plans of several are called."""
    return "mixed levels" if level == MIXED else level


def metric_label(metric: str, *, unit: bool = False) -> str:
    """The metric's name as words, with its unit where asked for and where it has one."""
    label = _METRIC_LABELS.get(metric, metric.replace("_", " "))
    return f"{label} ({_UNITS[metric]})" if unit and metric in _UNITS else label


def log_axis(axis: Axis, low: float, high: float, *, least: int) -> None:
    """Plain-number ticks: the fewest round ones that are at least `least`, 5 at most."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, *np.arange(1.1, 10, 0.1))):
        scaled = [float(f"{digit:.1f}e{power}") for power in decades for digit in digits]
        found = [tick for tick in scaled if low <= tick <= high]
        if len(found) > 5:
            break
        ticks = found
        if len(ticks) >= least:
            break
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
