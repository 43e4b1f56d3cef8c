"""What all prompt sets have in common: one tidy table, two splits, and where they are from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import pandas as pd

from tmpdiff_bench.errors import UsageError, check_known
from tmpdiff_bench.zoo.prompts import SPLITS

COLUMNS = ("prompt_id", "text", "split", "dataset")
# Changing it changes every split of published sets: recordings of before would not compare.
_SALT = "tmpdiff_bench prompts 1\n"


@dataclass(frozen=True)
class Prompts:
    """The prompts of a set: at least the columns `COLUMNS`, in the order in which they are taken.

    `origin` is what a recording's manifest says of them, as JSON.
    """

    name: str
    table: pd.DataFrame
    origin: Mapping[str, str | int]


class PromptSource(Protocol):
    """A named place that prompts are from; `default_count` None means all of them."""

    @property
    def name(self) -> str: ...

    @property
    def default_count(self) -> int | None: ...

    def load(self) -> Prompts:
        """Read the prompts. Raises `UsageError` where they can't be had, with the way out."""
        ...


def prompt_id(text: str) -> str:
    """An id made of the text alone, so that a prompt's noise is the same in any set and file."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def tidy(texts: Iterable[str | None], name: str) -> tuple[pd.DataFrame, dict[str, int]]:
    """The table of a set that has texts only, and how many `rows` there were, how many of them
    were `empty` and how many `duplicates`: these are left out.

    A salted sha256 of the text decides on the split and on the order. So a prompt is on the same
    side in all sets, neither depends on the order of the file (some are sorted by category), and
    the first n prompts are a random sample of the set.
    """
    rows = ["" if text is None else text.strip() for text in texts]
    unique = dict.fromkeys(row for row in rows if row)
    order = {t: hashlib.sha256(f"{_SALT}{t}".encode()).digest() for t in unique}
    chosen = sorted(unique, key=order.__getitem__)
    table = pd.DataFrame(
        {
            "prompt_id": [prompt_id(text) for text in chosen],
            "text": chosen,
            "split": [SPLITS[order[text][-1] % 2] for text in chosen],
            "dataset": name,
        },
        columns=list(COLUMNS),
    )
    empty = rows.count("")
    return table, {"rows": len(rows), "empty": empty, "duplicates": len(rows) - empty - len(table)}


def take(prompts: Prompts, split: str, count: int | None) -> pd.DataFrame:
    """The first `count` prompts of a split, or all of them.

    Raises:
        UsageError: an unknown split; `count` is below 1 or above what there is.
    """
    check_known("split", split, SPLITS)
    found = prompts.table[prompts.table["split"] == split].reset_index(drop=True)
    if count is None:
        return found
    if not 1 <= count <= len(found):
        raise UsageError(
            f"{count} prompts asked for: {prompts.name} has 1 to {len(found)} for {split}"
        )
    return found.head(count)
