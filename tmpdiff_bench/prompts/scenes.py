"""The prompts that ship with the library: captions of Scenes that no model was trained on."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from tmpdiff_bench.prompts.base import Prompts
from tmpdiff_bench.zoo.prompts import SPLITS, load_prompts, prompts_in_turn


@dataclass(frozen=True)
class ScenesPrompts:
    """One set of Scenes, or (`mixed`) all three, taken from in turn."""

    name: str
    mixed: bool = False
    default_count: int | None = 16

    def load(self) -> Prompts:
        """Read the Parquet files that ship."""
        tables = [
            prompts_in_turn(split) if self.mixed else load_prompts(self.name, split)
            for split in SPLITS
        ]
        origin = {"source": "ships with tmpdiff_bench", "licence": "Apache-2.0"}
        return Prompts(self.name, pd.concat(tables, ignore_index=True), origin)
