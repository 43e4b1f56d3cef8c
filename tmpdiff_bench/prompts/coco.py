"""MS COCO 2017, validation: the first caption of each of 5,000 images (Lin et al. 2014,
arXiv:1405.0312).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tmpdiff_bench.prompts.hub import HubPrompts, rows


def _texts(path: Path) -> Iterator[str | None]:
    # one caption an image: the five of an image say the same, and would not be independent
    for row in rows("parquet", path, columns=["captions"]):
        yield next(iter(row["captions"]), None)


COCO = HubPrompts(
    name="coco",
    repository="phiyodr/coco2017",
    revision="b7fdda03471d16ed0466762013197263aa4514fd",
    file="data/validation-00000-of-00001-e3c37e369512a3aa.parquet",
    licence="none named by the repository; COCO's annotations are CC-BY-4.0",
    texts=_texts,
)
