"""Exceptions of the library. Commands turn `UsageError` into one line and exit status 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """Something the user asked for is wrong; the message names the value and the way out."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that does not exist, with the nearest one that does."""
    names = sorted(known)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    return UsageError(f"unknown {kind} {name!r}: {hint}known: {', '.join(names)}")
