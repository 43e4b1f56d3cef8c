"""Writing files that are either whole or not there."""

from __future__ import annotations

import os
import socket
from pathlib import Path


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
