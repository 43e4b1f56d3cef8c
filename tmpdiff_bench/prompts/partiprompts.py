"""PartiPrompts: about 1,600 prompts by category (Yu et al. 2022, arXiv:2206.10789)."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from tmpdiff_bench.prompts.hub import HubPrompts, column


def _texts(path: Path) -> Iterator[str | None]:
    # quotation marks are part of the prompts there: fields are separated by tabs and never quoted
    return column(path, "Prompt", sep="\t", quoting=csv.QUOTE_NONE)


PARTIPROMPTS = HubPrompts(
    name="partiprompts",
    repository="nateraw/parti-prompts",
    revision="944b156abfdad7627c3221b5ec4f6a6fb060a197",
    file="PartiPrompts.tsv",
    licence="Apache-2.0",
    texts=_texts,
)
