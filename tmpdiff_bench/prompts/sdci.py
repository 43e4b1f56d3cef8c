"""sDCI: summarized dense captions of photographs (Urbanek et al. 2024, arXiv:2312.08578), in the
selection of SVDQuant (Li et al. 2024, arXiv:2411.05007).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

from tmpdiff_bench.prompts.hub import HubPrompts, document

# libyaml's where PyYAML was built with it: the other takes many seconds for a megabyte
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _texts(path: Path) -> Iterator[str | None]:
    try:
        found = yaml.load(document(path), Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    if not isinstance(found, dict):
        raise ValueError("names of images with their prompts are wanted")
    return (None if text is None else str(text) for text in found.values())


SDCI = HubPrompts(
    name="sdci",
    repository="mit-han-lab/svdquant-datasets",
    revision="edb1a849ee6c5dac725f977a419db32dd07716d6",
    file="sDCI.yaml",
    licence="CC-BY-NC-4.0",
    texts=_texts,
)
