"""All prompt sets by name: those that ship, published ones, and a user's own."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tmpdiff_bench.errors import UsageError, check_known, first_line
from tmpdiff_bench.prompts.base import Prompts, PromptSource, prompt_id
from tmpdiff_bench.prompts.published import PUBLISHED
from tmpdiff_bench.zoo.prompts import PROMPT_SETS, SPLITS, load_prompts, prompts_in_turn

_TEXT_COLUMNS = ("text", "prompt", "caption")
_KINDS = (".txt", ".csv", ".tsv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class OwnPrompts:
    """Prompts that are given as texts, a table or the path of a file, in their order. All are
    calibration prompts: whoever gives them means all of them.
    """

    given: Any
    default_count: int | None = None

    @property
    def name(self) -> str:
        return Path(self.given).stem if isinstance(self.given, str | Path) else "own"

    def load(self) -> Prompts:
        """Read them; raises as `read_prompts` and `tidy_prompts`."""
        origin: dict[str, str | int] = {}
        if isinstance(self.given, str | Path):
            path = Path(self.given)
            table = read_prompts(path)
            origin = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        elif isinstance(self.given, pd.DataFrame):
            table = tidy_prompts(self.given, "prompts=")
        else:
            table = tidy_prompts(pd.DataFrame({"text": list(self.given)}), "prompts=")
        return Prompts(self.name, table.assign(split=SPLITS[0], dataset=self.name), origin)


def read_prompts(path: Path) -> pd.DataFrame:
    """The prompts of a file, as `tidy_prompts`: a text file (a prompt a line), CSV, TSV, JSON lines
    or Parquet. Values of further columns in CSV and TSV are read as JSON, or else as text.

    Raises:
        UsageError: no such file, one of another kind or that can't be read; as `tidy_prompts`.
    """
    if not path.is_file():
        raise UsageError(f"--prompts {path}: there is no such file")
    try:
        table = _read_table(path)
    except UsageError:
        raise
    except (OSError, ValueError) as error:  # those of pandas and pyarrow among them
        raise UsageError(f"--prompts {path} can't be read: {first_line(error)}") from error
    return tidy_prompts(table, f"--prompts {path}")


def tidy_prompts(table: pd.DataFrame, named: str) -> pd.DataFrame:
    """A user's prompts: columns prompt_id, text (from a column `text`, `prompt` or `caption`, if
    there is one), and all others, which are call arguments with a value a prompt.

    Without ids, a prompt's id is made of its text, so that its noise is the same in any file; the
    second of equal ones has `-2` at its end, and noise of its own.

    Raises:
        UsageError: no prompt, an id given twice, or a value that is missing.
    """
    column = next((name for name in _TEXT_COLUMNS if name in table), None)
    more = [name for name in table.columns if name not in ("prompt_id", column)]
    rows = table.reset_index(drop=True)
    if column is not None:
        texts = rows[column].map(lambda x: "" if pd.api.types.is_scalar(x) and pd.isna(x) else x)
        rows[column] = texts.astype(str).str.strip()
        rows = rows[rows[column] != ""].reset_index(drop=True)
    if rows.empty or not (column or more):
        raise UsageError(f"{named} holds no prompt")
    for name in more:
        for row, value in enumerate(rows[name], 1):
            if value is None or (isinstance(value, float) and pd.isna(value)):
                raise UsageError(f"{named} has no {name} for prompt {row}: give one for each")
    if "prompt_id" in rows:
        ids = rows["prompt_id"].astype(str)
        if (twice := ids.duplicated()).any():
            raise UsageError(f"{named} has the prompt_id {ids[twice].iloc[0]} twice")
    else:
        whole = rows[column] if column else rows[more].apply(lambda row: repr(list(row)), axis=1)
        ids = pd.Series([prompt_id(text) for text in whole], dtype=str)
        before = ids.groupby(ids).cumcount()
        ids = ids.where(before == 0, ids + "-" + (before + 1).astype(str))
    found: dict[str, Any] = {"prompt_id": ids}
    if column is not None:
        found["text"] = rows[column]
    return pd.DataFrame({**found, **{str(name): rows[name] for name in more}})


def _read_table(path: Path) -> pd.DataFrame:
    match path.suffix.lower():
        case ".txt":
            return pd.DataFrame({"text": path.read_text(encoding="utf-8").splitlines()})
        case ".csv" | ".tsv" as kind:
            # what stands there is text: "NA" and "None" are prompts too
            separator = "," if kind == ".csv" else "\t"
            table = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False)
            for name in table.columns.difference([*_TEXT_COLUMNS, "prompt_id"]):
                table[name] = pd.Series([_value(text) for text in table[name]], dtype=object)
            return table
        case ".jsonl":
            lines = path.read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) for line in lines if line.strip()]
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("a line of it is not a JSON object")
            return pd.DataFrame(rows, dtype=object)
        case ".parquet":
            return pd.read_parquet(path)
    raise UsageError(f"--prompts {path}: {', '.join(_KINDS)} files are read")


def _value(text: str) -> Any:
    """As on the command line; what is left out is missing."""
    if text == "":
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text


DEFAULT_SET = "scenes"


@dataclass(frozen=True)
class ScenesPrompts:
    """Captions that no model was trained on: one set of Scenes, or, under the name of the default
    set, all three, taken from in turn.
    """

    name: str
    default_count: int | None = 16

    def load(self) -> Prompts:
        """Read the Parquet files that ship."""
        mixed = self.name == DEFAULT_SET
        tables = [prompts_in_turn(s) if mixed else load_prompts(self.name, s) for s in SPLITS]
        origin = {"source": "ships with tmpdiff_bench", "licence": "Apache-2.0"}
        return Prompts(self.name, pd.concat(tables, ignore_index=True), origin)


_ALL: list[PromptSource] = [ScenesPrompts(name) for name in (DEFAULT_SET, *PROMPT_SETS)]
SOURCES = {source.name: source for source in (*_ALL, *PUBLISHED)}


def prompt_source(name: str | None = None, own: Any = None) -> PromptSource:
    """The set of a name (by default the mix of Scenes), or a user's own: texts, a table or a file.

    Raises:
        UsageError: an unknown name, with the nearest one; a name and prompts of one's own.
    """
    if own is not None:
        if name is not None:
            raise UsageError("--prompt-set and --prompts exclude one another: give one of them")
        return OwnPrompts(own)
    name = DEFAULT_SET if name is None else name
    check_known("prompt set", name, SOURCES)
    return SOURCES[name]
