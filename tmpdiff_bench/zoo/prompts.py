"""Prompt sets of Scenes: captions that no model was trained on, with what each of them requires."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd

from tmpdiff_bench.errors import UsageError, unknown
from tmpdiff_bench.resources import data_folder
from tmpdiff_bench.zoo.captions import Requirement, sample_captions
from tmpdiff_bench.zoo.scenes import sample_scenes

# set name -> kinds of captions in it
PROMPT_SETS = {
    "scenes-attributes": ("attributes", "places"),
    "scenes-relations": ("relations",),
    "scenes-counts": ("counts",),
}
SPLITS = ("calibration", "evaluation")
_TEXT_COLUMNS = ("text", "prompt", "caption")
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
    if dataset not in PROMPT_SETS:
        raise unknown("prompt set", dataset, PROMPT_SETS)
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    table = pd.read_parquet(data_folder() / "prompts" / f"{dataset}.parquet")
    return table[table["split"] == split].reset_index(drop=True)


def read_prompts(path: Path) -> pd.DataFrame:
    """A user's prompts, columns prompt_id and text, from a text file (a prompt a line), CSV or
    Parquet (column `text`, `prompt` or `caption`, and `prompt_id` if there is one).

    Without ids, a prompt's id is made of its text, so that its noise is the same in any file.

    Raises:
        UsageError: no such file, one of another kind, or without (different) prompts in it.
    """
    if not path.is_file():
        raise UsageError(f"--prompts {path}: there is no such file")
    try:
        table = _read_table(path)
    except UsageError:
        raise
    except (OSError, ValueError) as error:  # those of pandas and pyarrow among them
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"--prompts {path} can't be read: {reason}") from error
    column = next((name for name in _TEXT_COLUMNS if name in table), None)
    if column is None:
        raise UsageError(
            f"--prompts {path} has the columns {', '.join(map(str, table.columns))}: "
            f"one of {', '.join(_TEXT_COLUMNS)} is needed"
        )
    found = pd.DataFrame({"text": table[column].dropna().astype(str).str.strip()})
    found = found[found["text"] != ""]
    if "prompt_id" in table:
        found["prompt_id"] = table["prompt_id"].astype(str)
    else:
        found["prompt_id"] = [hashlib.sha256(t.encode()).hexdigest()[:12] for t in found["text"]]
    if found.empty:
        raise UsageError(f"--prompts {path} holds no prompt")
    if (twice := found["prompt_id"].duplicated()).any():
        row = found[twice].iloc[0]
        raise UsageError(f"--prompts {path} has {row['text']!r} ({row['prompt_id']}) twice")
    return found.reset_index(drop=True)


def _read_table(path: Path) -> pd.DataFrame:
    match path.suffix.lower():
        case ".txt":
            return pd.DataFrame({"text": path.read_text(encoding="utf-8").splitlines()})
        case ".csv":
            return pd.read_csv(path, dtype=str)
        case ".parquet":
            return pd.read_parquet(path)
    raise UsageError(f"--prompts {path}: .txt, .csv and .parquet files are read")


def mixed_prompts(n: int, split: str) -> pd.DataFrame:
    """`n` prompts of a split, taken in turn from the three sets.

    Raises:
        UsageError: `n` is below 1 or above what there is.
    """
    tables = [load_prompts(name, split) for name in PROMPT_SETS]
    available = sum(map(len, tables))
    if not 1 <= n <= available:
        raise UsageError(f"{n} prompts asked for: the {split} prompts number 1 to {available}")
    order = np.concatenate([np.arange(len(t)) * len(tables) + i for i, t in enumerate(tables)])
    joined = pd.concat(tables, ignore_index=True)
    return joined.iloc[np.argsort(order)[:n]].reset_index(drop=True)
