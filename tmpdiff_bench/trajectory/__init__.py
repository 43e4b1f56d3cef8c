"""Recording trajectories: the prefix-tree engine, the recorder, and recordings on disk.

Names are imported when they are first used, so that the commands' `--help` is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from tmpdiff_bench.plan import nodes_per_step

if TYPE_CHECKING:
    from tmpdiff_bench.trajectory.engine import PrefixEngine
    from tmpdiff_bench.trajectory.jobs import JointRun
    from tmpdiff_bench.trajectory.recorder import record
    from tmpdiff_bench.trajectory.recording import Recording
    from tmpdiff_bench.trajectory.replay import NonFiniteLatentsError
    from tmpdiff_bench.trajectory.workload import Workload

__all__ = [
    "JointRun",
    "NonFiniteLatentsError",
    "PrefixEngine",
    "Recording",
    "Workload",
    "nodes_per_step",
    "record",
]

_MODULES = {
    "JointRun": "jobs",
    "NonFiniteLatentsError": "replay",
    "PrefixEngine": "engine",
    "Recording": "recording",
    "Workload": "workload",
    "record": "recorder",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
