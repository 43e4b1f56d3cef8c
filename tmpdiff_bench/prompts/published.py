"""Published prompt sets of the Hugging Face hub: where each is, and how its file is read."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tmpdiff_bench.prompts.hub import HubPrompts, column, document, rows

# libyaml's where PyYAML was built with it: the other takes many seconds for a megabyte
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _mjhq(path: Path) -> Iterator[str | None]:
    # {image id: {"category": ..., "prompt": ...}}: `datasets` would make a column of every image
    return (str(about["prompt"]) for about in _images(json.loads(document(path))).values())


def _sdci(path: Path) -> Iterator[str | None]:
    try:
        found = _images(yaml.load(document(path), Loader=_Loader))
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    return (None if text is None else str(text) for text in found.values())


def _coco(path: Path) -> Iterator[str | None]:
    # one caption an image: the five of an image say the same, and would not be independent
    for row in rows("parquet", path, columns=["captions"]):
        yield next(iter(row["captions"]), None)


def _partiprompts(path: Path) -> Iterator[str | None]:
    # quotation marks are part of the prompts there: fields are separated by tabs and never quoted
    return column(path, "Prompt", sep="\t", quoting=csv.QUOTE_NONE)


def _drawbench(path: Path) -> Iterator[str | None]:
    return column(path, "Prompts")


def _images(found: Any) -> Mapping[str, Any]:
    if not isinstance(found, dict):
        raise ValueError("names of images with their prompts are wanted")
    return found


PUBLISHED = (
    # 30,000 Midjourney prompts in ten categories (Li et al. 2024, arXiv:2402.17245)
    HubPrompts(
        name="mjhq",
        repository="playgroundai/MJHQ-30K",
        revision="15b0a659e066e763d0e9a6cd8f00e25f8af5e084",
        file="meta_data.json",
        licence="none named by the repository",
        texts=_mjhq,
    ),
    # Summarized dense captions of photographs (Urbanek et al. 2024, arXiv:2312.08578), in the
    # selection of SVDQuant (Li et al. 2024, arXiv:2411.05007)
    HubPrompts(
        name="sdci",
        repository="mit-han-lab/svdquant-datasets",
        revision="edb1a849ee6c5dac725f977a419db32dd07716d6",
        file="sDCI.yaml",
        licence="CC-BY-NC-4.0",
        texts=_sdci,
    ),
    # MS COCO 2017, validation: the first caption of each of 5,000 images (Lin et al. 2014,
    # arXiv:1405.0312)
    HubPrompts(
        name="coco",
        repository="phiyodr/coco2017",
        revision="b7fdda03471d16ed0466762013197263aa4514fd",
        file="data/validation-00000-of-00001-e3c37e369512a3aa.parquet",
        licence="none named by the repository; COCO's annotations are CC-BY-4.0",
        texts=_coco,
    ),
    # About 1,600 prompts by category (Yu et al. 2022, arXiv:2206.10789)
    HubPrompts(
        name="partiprompts",
        repository="nateraw/parti-prompts",
        revision="944b156abfdad7627c3221b5ec4f6a6fb060a197",
        file="PartiPrompts.tsv",
        licence="Apache-2.0",
        texts=_partiprompts,
    ),
    # 200 prompts in eleven categories (Saharia et al. 2022, arXiv:2205.11487)
    HubPrompts(
        name="drawbench",
        repository="sayakpaul/drawbench",
        revision="ad794cba698c253ffdb6d18eff3fc87b004c1135",
        file="DrawBench Prompts - Sheet1.csv",
        licence="Apache-2.0, as its users report",
        texts=_drawbench,
    ),
)
