"""What the scripts about the suite share: its results, scores paired by sample, words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from tmpdiff_bench.statistics import Interval
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


def bounds(interval: Interval, name: str) -> dict[str, float]:
    """The interval as three columns."""
    return {
        name: interval.estimate,
        f"{name}_low": interval.low,
        f"{name}_high": interval.high,
    }


def allocator_label(name: str) -> str:
    """The allocator's name as words."""
    return name.replace("_", " ")
