"""MJHQ-30K: 30,000 Midjourney prompts in ten categories (Li et al. 2024, arXiv:2402.17245)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tmpdiff_bench.prompts.hub import HubPrompts, document


def _texts(path: Path) -> Iterator[str | None]:
    # {image id: {"category": ..., "prompt": ...}}: `datasets` would make a column of every image
    found = json.loads(document(path))
    if not isinstance(found, dict):
        raise ValueError("names of images with their prompts are wanted")
    return (str(about["prompt"]) for about in found.values())


MJHQ = HubPrompts(
    name="mjhq",
    repository="playgroundai/MJHQ-30K",
    revision="15b0a659e066e763d0e9a6cd8f00e25f8af5e084",
    file="meta_data.json",
    licence="none named by the repository",
    texts=_texts,
)
