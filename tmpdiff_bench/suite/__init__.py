"""The benchmark suite: allocators scored on fixed tasks.

Names are imported when they are first used, so that the command's `--help` is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tmpdiff_bench.suite.results import SuiteResults, load_results, picture_name
    from tmpdiff_bench.suite.tasks import Group, Task
    from tmpdiff_bench.suite.v1 import FULL, PROFILES, QUICK, Profile

__all__ = [
    "FULL",
    "PROFILES",
    "QUICK",
    "Group",
    "Profile",
    "SuiteResults",
    "Task",
    "load_results",
    "picture_name",
]

_MODULES = {
    "FULL": "v1",
    "Group": "tasks",
    "PROFILES": "v1",
    "Profile": "v1",
    "QUICK": "v1",
    "SuiteResults": "results",
    "Task": "tasks",
    "load_results": "results",
    "picture_name": "results",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
