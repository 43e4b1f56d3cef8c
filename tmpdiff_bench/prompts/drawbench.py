"""DrawBench: 200 prompts in eleven categories (Saharia et al. 2022, arXiv:2205.11487)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tmpdiff_bench.prompts.hub import HubPrompts, column


def _texts(path: Path) -> Iterator[str | None]:
    return column(path, "Prompts")


DRAWBENCH = HubPrompts(
    name="drawbench",
    repository="sayakpaul/drawbench",
    revision="ad794cba698c253ffdb6d18eff3fc87b004c1135",
    file="DrawBench Prompts - Sheet1.csv",
    licence="Apache-2.0, as its users report",
    texts=_texts,
)
