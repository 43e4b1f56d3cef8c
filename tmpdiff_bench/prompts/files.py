"""A user's own prompts, from a text, CSV or Parquet file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.prompts.base import Prompts, prompt_id
from tmpdiff_bench.zoo.prompts import SPLITS

_TEXT_COLUMNS = ("text", "prompt", "caption")


@dataclass(frozen=True)
class FilePrompts:
    """The prompts of a file, in its order. All are calibration prompts: whoever gives a file
    means all of it, and splits it by giving another for evaluation.
    """

    path: Path
    default_count: int | None = None

    @property
    def name(self) -> str:
        return self.path.stem

    def load(self) -> Prompts:
        """Read the file; raises as `read_prompts`."""
        table = read_prompts(self.path).assign(split=SPLITS[0], dataset=self.name)
        digest = hashlib.sha256(self.path.read_bytes()).hexdigest()
        return Prompts(self.name, table, {"file": self.path.name, "sha256": digest})


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
        found["prompt_id"] = [prompt_id(text) for text in found["text"]]
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
