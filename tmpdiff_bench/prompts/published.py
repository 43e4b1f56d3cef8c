"""Published prompt sets: each one file of a repository of the Hugging Face hub, at a pinned commit,
and how it is read.
"""

from __future__ import annotations

import csv
import json
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from tmpdiff_bench.errors import UsageError, first_line
from tmpdiff_bench.prompts.base import Prompts, tidy

_ORIGIN = ("repository", "revision", "file", "licence")  # what is told of a set in recordings
_WAY_OUT = "give a file of your own with --prompts FILE"


@dataclass(frozen=True)
class HubPrompts:
    """A set of the hub.

    `file` of `repository` is fetched at the commit `revision` (a branch could change under a
    recording), or found in the hub client's cache; `texts` yields the prompts of its rows.
    """

    name: str
    repository: str
    revision: str
    file: str
    licence: str
    texts: Callable[[Path], Iterable[str | None]]
    default_count: int | None = 16

    def load(self) -> Prompts:
        """Fetch and read the set.

        Raises:
            UsageError: the file is neither cached nor to be had, or is not what it should be.
        """
        from datasets.exceptions import DatasetsError

        path = self._fetch()
        try:
            table, counts = tidy(self.texts(path), self.name)
            if table.empty:
                raise ValueError("it holds no prompt")
        except (OSError, ValueError, LookupError, TypeError, DatasetsError) as error:
            raise UsageError(
                f"--prompt-set {self.name}: {self.file} of {self.repository} is not as expected "
                f"({first_line(error)}): delete it from the hub's cache, or {_WAY_OUT}"
            ) from error
        origin = {name: getattr(self, name) for name in _ORIGIN}
        return Prompts(self.name, table, {**origin, **counts})

    def _fetch(self) -> Path:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError

        try:
            return Path(
                hf_hub_download(
                    self.repository, self.file, repo_type="dataset", revision=self.revision
                )
            )
        except (OSError, HfHubHTTPError) as error:
            raise UsageError(
                f"--prompt-set {self.name}: {self.file} of the data set {self.repository} at "
                f"{self.revision[:12]} is not in the hub's cache and can't be fetched "
                f"({first_line(error)}): run once with a connection, or {_WAY_OUT}"
            ) from error


def rows(builder: str, path: Path, **options: Any) -> Iterator[dict[str, Any]]:
    """The rows of a file, by a builder of `datasets` (csv or parquet), streamed: without it, a
    second copy of the file would stay in another cache.
    """
    from datasets import load_dataset

    yield from load_dataset(builder, data_files=str(path), split="train", streaming=True, **options)


def column(path: Path, name: str, **options: Any) -> Iterator[str | None]:
    """One column of a CSV file as text: `42`, `None` and `NA` are prompts as well."""
    from datasets import Features, Value

    table = rows(
        "csv",
        path,
        usecols=[name],
        features=Features({name: Value("string")}),
        keep_default_na=False,
        **options,
    )
    return (row[name] for row in table)


# libyaml's where PyYAML was built with it: the other takes many seconds for a megabyte
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _mjhq(path: Path) -> Iterator[str | None]:
    # {image id: {"category": ..., "prompt": ...}}: `datasets` would make a column of every image
    return (str(about["prompt"]) for about in _images(path, json.loads).values())


def _sdci(path: Path) -> Iterator[str | None]:
    try:
        found = _images(path, partial(yaml.load, Loader=_Loader))
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    return (None if text is None else str(text) for text in found.values())


def _coco(path: Path) -> Iterator[str | None]:
    # one caption an image: the five of an image say the same, and would not be independent
    for row in rows("parquet", path, columns=["captions"]):
        yield next(iter(row["captions"]), None)


def _images(path: Path, parse: Callable[[str], Any]) -> Mapping[str, Any]:
    found = parse(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError("names of images with their prompts are wanted")
    return found


_READERS: dict[str, Callable[[Path], Iterable[str | None]]] = {
    "mjhq": _mjhq,
    "sdci": _sdci,
    "coco": _coco,
    # quotation marks are part of the prompts there: fields are separated by tabs and never quoted
    "partiprompts": partial(column, name="Prompt", sep="\t", quoting=csv.QUOTE_NONE),
    "drawbench": partial(column, name="Prompts"),
}
_TOLD = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
PUBLISHED = [HubPrompts(name, **_TOLD[name], texts=texts) for name, texts in _READERS.items()]
