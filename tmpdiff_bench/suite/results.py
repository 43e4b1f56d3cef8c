"""The result files of a suite run: a folder of a manifest, tidy tables and pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors.numpy import load, save

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.files import read_manifest
from tmpdiff_bench.store.cells import read_verified, whole, write_folder
from tmpdiff_bench.suite.v1 import VERSION

SCHEMA_VERSION = 1
_TASK = ("task", "model", "prompt_set", "levels", "cost_table", "target_speedup", "steps")
# columns of every table, in order; docs/suite.md says what they hold
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "allocations": (
        *(*_TASK, "allocator", "status", "reason", "plan", "cost", "budget", "speedup", "error"),
        *("predicted_error", "lower_bound", "evaluations", "nfe", "nfe_plain", "seconds"),
        *("measuring_seconds", "optimum_error", "regret"),
    ),
    "scores": (
        *(*_TASK, "allocator", "plan", "speedup", "prompt_id", "language", "seed"),
        *("metric", "value"),
    ),
    "transfers": (
        *(*_TASK, "allocator", "kind", "source", "native", "plan", "cost", "budget", "speedup"),
        *("within_budget", "prompt_id", "language", "seed", "metric", "value"),
    ),
    "drift": (
        *("model", "prompt_set", "steps", "condition", "plan", "prompt_id", "seed"),
        *("latent_rmse", "smallest_single_error", "ratio"),
    ),
}
_PICTURES = "pictures.safetensors"


@dataclass(frozen=True, eq=False)
class SuiteResults:
    """What a run of the suite found.

    `allocations`: a row per (task, allocator); `scores` and `transfers`: a row per (task,
    allocator, evaluation sample, metric); `drift`: a row per (group, condition, sample). `pictures`
    uint8 (m, H, W, 3) by `picture_name`. `manifest`: suite and schema version, profile, `key` (of
    all that changes a number), digests, environment, floors, NFE and seconds.
    """

    manifest: dict[str, Any]
    allocations: pd.DataFrame
    scores: pd.DataFrame
    transfers: pd.DataFrame
    drift: pd.DataFrame
    pictures: dict[str, NDArray[np.uint8]]

    def save(self, folder: Path) -> SuiteResults:
        """Write all files into `folder`, the manifest last; returns what was written."""
        files = {
            f"{name}.parquet": getattr(self, name)[list(columns)].to_parquet(None, index=False)
            for name, columns in COLUMNS.items()
        }
        pictures = {name: np.ascontiguousarray(value) for name, value in self.pictures.items()}
        files[_PICTURES] = save(pictures)
        about = {**self.manifest, "suite_version": VERSION, "schema_version": SCHEMA_VERSION}
        return SuiteResults(**{**vars(self), "manifest": write_folder(folder, files, about)})

    def check_comparable(self, other: SuiteResults) -> None:
        """Raise `UsageError` unless both are of the same models, prompts, costs and tasks."""
        mine, others = self.manifest["digests"], other.manifest["digests"]
        if differing := sorted(k for k in {*mine, *others} if mine.get(k) != others.get(k)):
            raise UsageError(
                f"results of different {', '.join(differing)} are not comparable: run the suite "
                "again for both"
            )


def picture_name(model: str, prompt_set: str, steps: int, plan: str) -> str:
    """The name of a run's pictures; `plan` is a plan's text or "reference"."""
    return f"{model}|{prompt_set}|{steps}|{plan}"


def load_results(folder: Path | str) -> SuiteResults:
    """Read the results of a run. The pictures, by far the largest file, may have been left out of
    the folder; then there are none.

    Raises:
        UsageError: there are none, they are of another version of the suite, or another file is
            missing, outside the folder, or not the one that the manifest has the digest of.
    """
    folder = Path(folder)
    manifest = read_manifest(
        folder,
        absent="no results: there is no manifest.json in it; "
        "`python -m tmpdiff_bench.suite --out FOLDER` makes them",
        suite_version=VERSION,
        schema_version=SCHEMA_VERSION,
    )
    with whole(folder, "folder of results"):
        contents = {
            name: read_verified(folder, name, sha)
            for name, sha in manifest["files"].items()
            if name != _PICTURES or (folder / name).exists()
        }
        tables = {n: pd.read_parquet(io.BytesIO(contents[f"{n}.parquet"])) for n in COLUMNS}
        pictures = load(contents[_PICTURES]) if _PICTURES in contents else {}
        for name, columns in COLUMNS.items():
            if tuple(tables[name].columns) != columns:
                raise UsageError(f"{folder / name}.parquet has other columns than {columns}")
    return SuiteResults(manifest=manifest, pictures=pictures, **tables)
