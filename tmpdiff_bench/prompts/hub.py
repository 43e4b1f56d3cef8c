"""Published prompt sets: one file of a repository of the Hugging Face hub, at a pinned commit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.prompts.base import Prompts, tidy

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
        except (OSError, ValueError, LookupError, TypeError, DatasetsError) as error:
            raise self._unreadable(_first_line(error)) from error
        if table.empty:
            raise self._unreadable("it holds no prompt")
        origin: dict[str, str | int] = {
            "repository": self.repository,
            "revision": self.revision,
            "file": self.file,
            "licence": self.licence,
            **counts,
        }
        return Prompts(self.name, table, origin)

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
                f"({_first_line(error)}): run once with a connection, or {_WAY_OUT}"
            ) from error

    def _unreadable(self, reason: str) -> UsageError:
        return UsageError(
            f"--prompt-set {self.name}: {self.file} of {self.repository} is not as expected "
            f"({reason}): delete it from the hub's cache, or {_WAY_OUT}"
        )


def rows(builder: str, path: Path, **options: Any) -> Iterator[dict[str, Any]]:
    """The rows of a file, by a builder of `datasets` (csv, parquet or text), streamed: without
    it, a second copy of the file would stay in another cache.
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


def document(path: Path) -> str:
    """The whole text of a file whose format `datasets` has no builder for."""
    (row,) = rows("text", path, sample_by="document")
    return str(row["text"])


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
