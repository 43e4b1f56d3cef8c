"""All prompt sets by name: those that ship, published ones, and a user's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from tmpdiff_bench.errors import UsageError, unknown
from tmpdiff_bench.prompts.base import Prompts, PromptSource
from tmpdiff_bench.prompts.files import OwnPrompts
from tmpdiff_bench.prompts.published import PUBLISHED
from tmpdiff_bench.zoo.prompts import PROMPT_SETS, SPLITS, load_prompts, prompts_in_turn

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


_SCENES = map(ScenesPrompts, (DEFAULT_SET, *PROMPT_SETS))
SOURCES: dict[str, PromptSource] = {source.name: source for source in (*_SCENES, *PUBLISHED)}


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
    if name not in SOURCES:
        raise unknown("prompt set", name, SOURCES)
    return SOURCES[name]
