"""A content-addressed store: arrays under the sha256 of everything that changes their numbers.

A cell is one safetensors file that carries the sha256 of its own arrays. It is written aside,
synced and renamed, so a store is good at every moment, whoever is killed; two processes that
compute the same cell write the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from tmpdiff_bench.store.files import clear_leftovers, write_atomically

Arrays = Mapping[str, NDArray[Any]]
_LENGTH_BYTES = 8  # of a safetensors header's length, little-endian, at the start of the file


def digest(content: Mapping[str, Any]) -> str:
    """sha256 of canonical JSON: the key of what was computed from `content`.

    >>> digest({"b": 1, "a": "ü"}) == digest({"a": "ü", "b": 1})
    True
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


class CellStore:
    """Cells by key, in `folder`, which is made when the first one is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str) -> dict[str, NDArray[Any]] | None:
        """The arrays of a cell; None where it is absent, or damaged (with a warning): compute it
        again then.
        """
        path = self._path(key)
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        arrays = _whole(content)
        if arrays is None:
            warnings.warn(f"{path} is damaged: it is computed again", stacklevel=2)
        return arrays

    def put(self, key: str, arrays: Arrays) -> None:
        """Store a cell. Raises `OSError` where the disk is full; cells stored before are kept."""
        path = self._path(key)
        ordered = {name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}
        content = save(ordered, metadata={"sha256": _arrays_digest(ordered)})
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)

    def discard(self, keys: Iterable[str]) -> None:
        """Delete cells, and the folders that this leaves empty."""
        for key in keys:
            path = self._path(key)
            path.unlink(missing_ok=True)
            clear_leftovers(path.parent)
            for folder in (path.parent, self.folder):
                with contextlib.suppress(OSError):  # not empty, or gone
                    folder.rmdir()

    def keys(self) -> Iterator[str]:
        """The keys of all cells, whole or not, in order."""
        for path in sorted(self.folder.glob("??/*.safetensors")):
            yield path.stem

    def damaged(self) -> list[Path]:
        """Files of cells that are not what was written."""
        paths = map(self._path, self.keys())
        return [path for path in paths if _whole(path.read_bytes()) is None]

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"


def _arrays_digest(arrays: Arrays) -> str:
    hasher = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        hasher.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        hasher.update(array.tobytes())
    return hasher.hexdigest()


def _whole(content: bytes) -> dict[str, NDArray[Any]] | None:
    """The arrays of a cell's file; None unless they are those that were written."""
    try:
        arrays: dict[str, NDArray[Any]] = load(content)
        length = int.from_bytes(content[:_LENGTH_BYTES], "little")
        header = json.loads(content[_LENGTH_BYTES : _LENGTH_BYTES + length])
        expected = header["__metadata__"]["sha256"]
    except (SafetensorError, ValueError, KeyError, TypeError):
        return None
    return arrays if _arrays_digest(arrays) == expected else None
