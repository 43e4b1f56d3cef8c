"""Files that are either whole or not there, and those that a manifest names."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path

from tmpdiff_bench.errors import UsageError


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
