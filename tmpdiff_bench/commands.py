"""What the commands share: exit statuses, one-line errors, and arguments that are checked.

A command's `__main__.py` is `run(main)`. What is heavy is imported inside `main`: so `--help` is
fast, and Ctrl-C has its one line from the start.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tmpdiff_bench.errors import UsageError, not_installed

# M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_THRESHOLD of malloc.h, in bytes
_MALLOC_OPTIONS = {-1: 2**31 - 1, -2: 2**28, -3: 2**30}


def run(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> NoReturn:
    """Call `main` with the command line (`argv`, by default the process's) and end the process.

    Exit status 0; 2 after a `UsageError`; 130 after Ctrl-C; 1 where the disk is full. Each of the
    last three prints one line on stderr; other exceptions are faults of ours and keep their traces.
    """
    _keep_freed_memory()
    try:
        main(sys.argv[1:] if argv is None else argv)
    except UsageError as error:
        _end(2, f"error: {error}")
    except ModuleNotFoundError as error:
        if (told := not_installed(error)) is None:
            raise
        _end(2, f"error: {told}")
    except KeyboardInterrupt:
        _end(130, "interrupted: finished work is kept; run the same command again to go on")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        place = f" for {error.filename}" if error.filename else ""
        _end(
            1,
            f"error: no room left on disk{place}; finished work is kept: "
            "free some space and run the same command again to go on",
        )
    sys.exit(0)


class ArgumentParser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` whose errors are one line, without the usage text.

    Descriptions keep their lines, and options are not abbreviated; `add_subparsers` makes parsers
    of the same kind.
    """

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**{"allow_abbrev": False, **options})

    def option(self, name: str, help: str, **options: Any) -> None:
        """Add an option; a default, where there is one, is told in its help. Paths are PATH, others
        the last word of their name. `repeated` ones are lists, of all that were given.
        """
        if options.pop("repeated", False):
            options |= {"action": "append", "default": []}
        elif options.get("default") not in (None, argparse.SUPPRESS):
            help += " (default: %(default)s)"
        if options.get("action") != "store_true":
            path = options.get("type") in (Path, out_folder)
            options.setdefault("metavar", "PATH" if path else name.rpartition("-")[2].upper())
        self.add_argument(name, help=help, **options)

    def error(self, message: str) -> NoReturn:
        """Print the line and exit with status 2."""
        _end(2, f"error: {message} (--help lists the options)")


def positive_int(text: str) -> int:
    """The argument type of counts: 1, 2, ..."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def seed(text: str) -> int:
    """The argument type of seeds: 0, 1, ..."""
    if not (text.isdecimal() and int(text) < 2**32):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2^32 - 1")
    return int(text)


def finite_float(text: str) -> float:
    """The argument type of real numbers; NaN and infinities are refused."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


def names(text: str) -> tuple[str, ...]:
    """The argument type of lists of names, such as a,b: each given once."""
    found = tuple(name.strip() for name in text.split(","))
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of names, such as a,b")
    if repeated := next((name for name in found if found.count(name) > 1), None):
        raise argparse.ArgumentTypeError(f"{text!r} names {repeated} more than once")
    return found


def out_folder(text: str) -> Path:
    """The argument type of folders that are written to, made if need be: known before the work."""
    folder = Path(text)
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise argparse.ArgumentTypeError(f"{nearest} is no folder that can be written to")
    return folder


def _end(status: int, message: str) -> NoReturn:
    print(" ".join(message.split()), file=sys.stderr)
    sys.exit(status)


def _keep_freed_memory() -> None:
    """Tell glibc not to return freed memory: the temporaries of a forward would come back page by
    page at the next one, which took 30 % of the time of a recording on two cores.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        for option, value in _MALLOC_OPTIONS.items():
            ctypes.CDLL(None).mallopt(option, value)
