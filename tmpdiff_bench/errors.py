"""Exceptions of the library. Commands turn `UsageError` into one line and exit status 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXTRAS = {
    "metrics": ("cleanfid", "lpips", "torchmetrics"),
    "models": (
        *("accelerate", "datasets", "diffusers", "huggingface_hub", "tokenizers", "torch"),
        *("torchao", "torchvision", "transformers"),
    ),
}


class UsageError(ValueError):
    """Something the user asked for is wrong; the message names the value and the way out."""


def not_installed(error: ModuleNotFoundError) -> str | None:
    """What to say of a package that an extra brings; None for any other."""
    name = str(error.name).partition(".")[0]
    for extra, packages in EXTRAS.items():
        if name in packages:
            return f"{name} is not installed: pip install 'tmpdiff_bench[{extra}]'"
    return None


def one_line(error: BaseException) -> str:
    """All that an error says, in one line."""
    return " ".join(str(error).split())


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its class."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")


def unknown(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that does not exist, with the nearest one that does."""
    names = sorted(known)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    return UsageError(f"unknown {kind} {name!r}: {hint}known: {', '.join(names)}")


def check_known(kind: str, name: str, known: Iterable[str]) -> None:
    """Raise `unknown` for a name that is not among the known ones."""
    names = tuple(known)
    if name not in names:
        raise unknown(kind, name, names)
