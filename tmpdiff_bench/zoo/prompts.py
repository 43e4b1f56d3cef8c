"""Prompt sets of Scenes: captions that no model was trained on, with what each of them requires."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from tmpdiff_bench.errors import UsageError, check_known
from tmpdiff_bench.files import data_folder
from tmpdiff_bench.zoo.captions import Requirement, sample_captions
from tmpdiff_bench.zoo.scenes import sample_scenes

# set name -> kinds of captions in it
PROMPT_SETS = {
    "scenes-attributes": ("attributes", "places"),
    "scenes-relations": ("relations",),
    "scenes-counts": ("counts",),
}
SPLITS = ("calibration", "evaluation")
_PER_SPLIT = 128
_SEED = 2603


def build_prompts() -> pd.DataFrame:
    """All prompt sets: columns prompt_id, dataset, split, text, language, requirement (JSON).

    A requirement occurs once over all sets and splits, in one language.
    """
    rows, seen = [], set[Requirement]()
    counts = {(name, split): 0 for name in PROMPT_SETS for split in SPLITS}
    scenes = sample_scenes(40_000, seed=_SEED, split="prompts")
    _, captions = sample_captions(scenes, seed=_SEED, reserved=True)
    for captioned in captions:
        requirement = captioned.requirement
        if requirement in seen:
            continue
        dataset = next(name for name, kinds in PROMPT_SETS.items() if requirement.kind in kinds)
        split = next((s for s in SPLITS if counts[dataset, s] < _PER_SPLIT), None)
        if split is None:
            continue
        seen.add(requirement)
        number = counts[dataset, split]
        counts[dataset, split] += 1
        rows.append(
            {
                "prompt_id": f"{dataset.removeprefix('scenes-')}-{split[:4]}-{number:03d}",
                "dataset": dataset,
                "split": split,
                "text": captioned.text,
                "language": captioned.language,
                "requirement": requirement.to_json(),
            }
        )
    return pd.DataFrame(rows).sort_values(["dataset", "split", "prompt_id"], ignore_index=True)


def write_prompts(folder: Path) -> list[Path]:
    """Write one Parquet file per set into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, table in build_prompts().groupby("dataset"):
        paths.append(folder / f"{name}.parquet")
        table.to_parquet(paths[-1], index=False)
    return paths


def load_prompts(dataset: str, split: str) -> pd.DataFrame:
    """The prompts of one set and split. Raises `UsageError` for an unknown name."""
    check_known("prompt set", dataset, PROMPT_SETS)
    check_known("split", split, SPLITS)
    table = pd.read_parquet(data_folder() / "prompts" / f"{dataset}.parquet")
    return table[table["split"] == split].reset_index(drop=True)


def prompts_in_turn(split: str) -> pd.DataFrame:
    """All prompts of a split, taken in turn from the three sets."""
    tables = [load_prompts(name, split) for name in PROMPT_SETS]
    order = np.concatenate([np.arange(len(t)) * len(tables) + i for i, t in enumerate(tables)])
    return pd.concat(tables, ignore_index=True).iloc[np.argsort(order)].reset_index(drop=True)


def mixed_prompts(n: int, split: str) -> pd.DataFrame:
    """The first `n` of `prompts_in_turn`.

    Raises:
        UsageError: `n` is below 1 or above what there is.
    """
    found = prompts_in_turn(split)
    if not 1 <= n <= len(found):
        raise UsageError(f"{n} prompts asked for: the {split} prompts number 1 to {len(found)}")
    return found.head(n)
