"""One colour and one marker per allocator, in every figure."""

from __future__ import annotations

import zlib
from typing import Any

_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#222222", "#8B5A2B")
_MARKERS = "osD^vP*X<>pdh"
_ORDER = (
    "uniform",
    "first_last",
    "random_search",
    "greedy_forward",
    "greedy_backward",
    "bisection",
    "knapsack",
    "gram",
    "beam",
    "evolutionary",
    "exhaustive",
    "fewer_steps",
)


def mark(allocator: str) -> dict[str, Any]:
    """Arguments of `Axes.plot` for one mark; those that we don't know get one by their name."""
    known = allocator in _ORDER
    index = _ORDER.index(allocator) if known else zlib.crc32(allocator.encode())
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "ms": 6,
        "mec": "white",
        "mew": 0.5,
        "ls": "",
    }
