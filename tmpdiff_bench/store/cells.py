"""Results on disk that survive crashes: files and folders that are whole or not there, and a
content-addressed store of arrays under the sha256 of everything that changes their numbers.

A cell is one safetensors file that carries the sha256 of its own arrays. It is written aside,
synced and renamed, so a store is good at every moment, whoever is killed; two processes that
compute the same cell write the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from tmpdiff_bench.errors import UsageError

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

    def kept(self, key: str, compute: Callable[[], Arrays]) -> Arrays:
        """A cell, computed and stored where it is absent."""
        cell: Arrays | None = self.get(key)
        if cell is None:
            cell = compute()
            self.put(key, cell)
        return cell

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


MANIFEST = "manifest.json"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves either the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def read_verified(folder: Path, name: str, digest: str) -> bytes:
    """What a file holds that a manifest in the folder names, with its sha256.

    Raises `UsageError` for a name that leaves the folder, a link, and other content.
    """
    # a manifest may come from anywhere: it must not make us read outside its own folder
    if Path(name).name != name or (folder / name).is_symlink():
        raise UsageError(f"the manifest names {name!r}, which is no plain file of {folder}")
    try:
        content = (folder / name).read_bytes()
    except OSError as error:
        raise UsageError(f"{folder / name} can't be read: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise UsageError(f"{folder / name} is damaged: its sha256 is not the manifest's {digest}")
    return content


def write_folder(
    folder: Path, files: Mapping[str, bytes], manifest: Mapping[str, Any]
) -> dict[str, Any]:
    """Write files, then the manifest, which is made to name them: so a folder with one is whole.
    Returns the manifest as it was written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    for name, content in files.items():
        write_atomically(folder / name, content)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    whole = {**manifest, "files": digests}
    text = json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(folder / MANIFEST, text.encode())
    return whole


@contextmanager
def whole(folder: Path, what: str) -> Iterator[None]:
    """Whatever can't be read inside of the `with` is one line: the folder is no whole `what`."""
    try:
        yield
    except UsageError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, SafetensorError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UsageError(f"{folder} is not a whole {what} ({reason})") from error


def clear_leftovers(folder: Path) -> None:
    """Remove what processes of this machine that are no more were writing into `folder`."""
    for path in folder.glob(f".*.{socket.gethostname()}.*.tmp"):
        try:
            os.kill(int(path.suffixes[-2].removeprefix(".")), 0)
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except (ValueError, PermissionError):
            continue


def _sync_folder(folder: Path) -> None:
    """Make the renaming itself last; where folders can't be opened (Windows), it is not asked."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
