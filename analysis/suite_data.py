"""What the scripts about the suite share: its results, scores paired by sample, words."""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.base import Tolerance
from tmpdiff_bench.statistics import Interval, paired_interval
from tmpdiff_bench.suite import SuiteResults, load_results

FOLDER = "suite-v1"
INPUTS = (f"{FOLDER}/manifest.json", f"{FOLDER}/*.parquet")
ERROR = "latent_rmse"
SAMPLE = ["task", "prompt_id", "seed"]
RIVALS = ("uniform", "fewer_steps")  # no temporal mixed precision
REFERENCE = "reference"
BEST = "best on calibration"
ALL = "all"


def results(folder: Path) -> SuiteResults:
    """The suite's results in a reports folder."""
    return load_results(folder / FOLDER)


def scores(found: SuiteResults, metric: str = ERROR) -> pd.DataFrame:
    """Scores of one metric, with a further allocator: the plan of least calibration error of each
    task, of those that are neither uniform nor fewer steps. Ties go to the first allocator.
    """
    rows = found.scores[found.scores["metric"] == metric]
    best = chosen_on_calibration(found)
    twice = rows.merge(best, on=["task", "allocator"])
    return pd.concat([rows, twice.assign(allocator=BEST)], ignore_index=True)


def chosen_on_calibration(found: SuiteResults, *, without: tuple[str, ...] = ()) -> pd.DataFrame:
    """Columns task, allocator: who has the least calibration error, rivals left out."""
    rows = found.allocations
    rows = rows[(rows["status"] == "ok") & ~rows["allocator"].isin([*RIVALS, *without])]
    return rows.loc[rows.groupby("task", sort=False)["error"].idxmin(), ["task", "allocator"]]


def against(frame: pd.DataFrame, rival: str) -> pd.DataFrame:
    """Rows of `frame` that the rival has a score for too, with `log_ratio` of the two values."""
    base = frame.loc[frame["allocator"] == rival, [*SAMPLE, "value"]]
    paired = frame.merge(base, on=SAMPLE, suffixes=("", "_rival"))
    ratio = paired["value"] / paired["value_rival"]
    return paired.assign(log_ratio=np.log(ratio))


def by_prompt(frame: pd.DataFrame, column: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """One mean per prompt."""
    means: np.ndarray[tuple[int], np.dtype[np.float64]] = (
        frame.groupby("prompt_id")[column].mean().to_numpy(float)
    )
    return means


def with_all(frame: pd.DataFrame, column: str = "model") -> pd.DataFrame:
    """The frame, and once more with `column` replaced by "all", if it has more than one value."""
    if frame[column].nunique() < 2:
        return frame
    return pd.concat([frame, frame.assign(**{column: ALL})], ignore_index=True)


def allocator_label(name: str) -> str:
    """The allocator's name as words."""
    return name.replace("_", " ")


# Of a mean error, or of a ratio of errors, over a few samples: a stated bound, not a fitted one. It
# lets through what another draw of the rounding noise does, and holds what a fault does: a level
# that does not round, a plan shifted by a step, another guidance.
CHAOTIC = Tolerance(0.5, 0.005, "other kernels draw other rounding noise: half of it")
# Rows of plans that measured errors hardly choose. The others decide near-ties on so few samples
# otherwise under other kernels, and their errors have been seen to differ fourfold then.
UNCHOSEN = {"allocator": ("reference", "uniform", "fewer_steps")}
DESIGNED = Tolerance(0, 0, "by design of the suite, whatever the kernels")


_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#222222", "#8B5A2B")
_MARKERS = "osD^vP*X<>pdh"
_ORDER = (
    "uniform",
    "first_last",
    "random_search",
    "greedy_forward",
    "greedy_backward",
    "bisection",
    "knapsack",
    "gram",
    "beam",
    "evolutionary",
    "exhaustive",
    "fewer_steps",
)


def mark(allocator: str) -> dict[str, Any]:
    """Arguments of `Axes.plot` for one mark; those that we don't know get one by their name."""
    known = allocator in _ORDER
    index = _ORDER.index(allocator) if known else zlib.crc32(allocator.encode())
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "ms": 6,
        "mec": "white",
        "mew": 0.5,
        "ls": "",
    }


Array = NDArray[np.float64]
ALPHA = 0.05


def mean_interval(values: Array, least: float = -math.inf, most: float = math.inf) -> Interval:
    """The mean of one value per unit with its interval, cut at what values can be (`least`,
    `most`); no bounds where none can be had (below three units, or values that are not finite, as
    PSNR of equal images).
    """
    if not len(values) or not np.isfinite(values).all():
        return Interval(float(np.mean(values)) if len(values) else math.nan, math.nan, math.nan)
    found = paired_interval(values)
    return Interval(found.estimate, max(found.low, least), min(found.high, most))


def ratio_interval(logs: Interval) -> Interval:
    """The ratio that a mean log ratio stands for."""
    return Interval(math.exp(logs.estimate), math.exp(logs.low), math.exp(logs.high))
