"""Allocation problems of real models: from a recording, or measured live.

Names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tmpdiff_bench.problems.costs import CostTable, RelativeCosts
    from tmpdiff_bench.problems.live import LiveError, live_problem
    from tmpdiff_bench.problems.recorded import RecordedError, from_recording

__all__ = [
    "CostTable",
    "LiveError",
    "RecordedError",
    "RelativeCosts",
    "from_recording",
    "live_problem",
]

_MODULES = {
    "CostTable": "costs",
    "RelativeCosts": "costs",
    "LiveError": "live",
    "live_problem": "live",
    "RecordedError": "recorded",
    "from_recording": "recorded",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
