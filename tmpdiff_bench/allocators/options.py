"""Options of allocators, checked: what can't be used is refused with the value and the way out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tmpdiff_bench.errors import UsageError

_NO_NUMBERS = (bool, np.bool_, str, bytes)  # float() would take them


def whole(name: str, value: Any, least: int) -> int:
    """A whole number. Raises `UsageError` for anything else, True and 2.0 included."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise UsageError(f"{name} is {value!r}: a whole number of at least {least} is needed")
    return int(value)


def number(name: str, value: Any, least: float = -math.inf, most: float = math.inf) -> float:
    """A finite number. Raises `UsageError` for anything else, "1" and True included."""
    found = as_float(value)
    if not (math.isfinite(found) and least <= found <= most):
        limits = ""
        if math.isfinite(least):
            limits = f" of at least {least:g}"
        if math.isfinite(most):
            limits = f" from {least:g} to {most:g}"
        raise UsageError(f"{name} is {value!r}: a finite number{limits} is needed")
    return found


def seeded(rng: Any) -> np.random.Generator:
    """The random stream of a seed, or a given one. Raises `UsageError` for anything else."""
    if isinstance(rng, np.random.Generator):
        return rng
    if isinstance(rng, bool) or not isinstance(rng, int | np.integer) or rng < 0:
        raise UsageError(
            f"rng is {rng!r}: a whole number that is not negative, or a numpy Generator, is needed"
        )
    return np.random.default_rng(rng)


def as_float(value: Any) -> float:
    """The number that a value is; NaN where it is none."""
    if isinstance(value, _NO_NUMBERS):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
