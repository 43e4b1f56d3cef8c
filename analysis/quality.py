"""Table: errors and image metrics at matched speedup, per allocator, on evaluation prompts."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pandas as pd

from analysis.base import Made, Reports, Script, TableFile
from analysis.suite_data import (
    CHAOTIC,
    DESIGNED,
    INPUTS,
    UNCHOSEN,
    allocator_label,
    by_prompt,
    mean_interval,
    results,
)
from tmpdiff_bench.commands import run
from tmpdiff_bench.report.tables import Table, interval, number
from tmpdiff_bench.statistics import Interval

KEYS = ("model", "steps", "levels", "target_speedup", "allocator", "metric")
HEADERS = {
    "latent_rmse": "latent RMSE",
    "ssim": "SSIM",
    "psnr": "PSNR (dB)",
    "lpips-scenes": "lpips-scenes",
    "scene_objects": "objects as asked",
    "scene_all": "scenes as asked",
}


RANGES = {
    "latent_rmse": (0, math.inf),
    "ssim": (-1, 1),
    "lpips-scenes": (0, math.inf),
    "scene_objects": (0, 1),
    "scene_all": (0, 1),
}


def means(scores: pd.DataFrame) -> pd.DataFrame:
    """Rows by `KEYS`: mean over prompts with its interval, mean speedup, number of prompts."""
    rows = []
    for key, group in scores.groupby(list(KEYS), sort=False):
        values = by_prompt(group, "value")
        rows.append(
            {
                **dict(zip(KEYS, key, strict=True)),
                "speedup": group["speedup"].mean(),
                **mean_interval(values, *RANGES.get(key[-1], ())).columns("mean"),
                "prompts": len(values),
            }
        )
    return pd.DataFrame(rows)


def words(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per allocator at the middle target of each level set, a column per metric."""
    lines = []
    for _, task in frame.groupby(["model", "steps", "levels"], sort=False):
        targets = sorted(task["target_speedup"].unique())
        task = task[task["target_speedup"] == targets[len(targets) // 2]]
        for name, rows in task.groupby("allocator", sort=False):
            first = rows.iloc[0]
            ends = rows[["mean", "mean_low", "mean_high"]].to_numpy(float)
            cells = {
                HEADERS[metric]: interval(Interval(*row))
                for metric, row in zip(rows["metric"], ends, strict=True)
            }
            lines.append(
                {
                    "allocator": allocator_label(str(name)),
                    "model": first["model"],
                    "steps": str(first["steps"]),
                    "levels": first["levels"],
                    "target": number(first["target_speedup"]),
                    "speedup": number(first["speedup"]),
                    **{header: cells.get(header, "-") for header in HEADERS.values()},
                }
            )
    return pd.DataFrame(lines)


def make(reports: Reports) -> Iterator[Made]:
    """The table."""
    scores = results(reports.folder).scores
    frame = means(scores)
    prompts = int(frame["prompts"].max())
    yield Table(
        "quality",
        "Quality at matched speedup",
        frame,
        words(frame),
        f"Means over evaluation prompts ({prompts} at most; every prompt set has its own plan) "
        "with 95 % bootstrap intervals by prompt, at the middle target of each level set; the "
        "csv has all targets. Latent RMSE, SSIM, PSNR and lpips-scenes are against the reference "
        "run of the same noise; objects and scenes as asked are what a trained recogniser reads "
        "back.",
    )


SCRIPT = Script(
    "quality",
    make,
    inputs=INPUTS,
    outputs=(
        TableFile(
            "quality",
            KEYS,
            elsewhere={"mean": CHAOTIC, "prompts": DESIGNED},
            rows_elsewhere=UNCHOSEN,
            intervals={"mean": ("mean_low", "mean_high")},
        ),
    ),
)

if __name__ == "__main__":
    run(SCRIPT.main)
