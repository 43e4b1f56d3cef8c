"""Do quantization errors of single denoising steps add up? Design, tests and report.

Names are imported when they are first used, so that the command's `--help` is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tmpdiff_bench.additivity.analysis import analyse
    from tmpdiff_bench.additivity.design import JointPlan, joint_design
    from tmpdiff_bench.additivity.inference import additivity_test, holm
    from tmpdiff_bench.additivity.predictors import PREDICTORS
    from tmpdiff_bench.additivity.records import AdditivityReport, AdditivityTest, Interval

__all__ = [
    "PREDICTORS",
    "AdditivityReport",
    "AdditivityTest",
    "Interval",
    "JointPlan",
    "additivity_test",
    "analyse",
    "holm",
    "joint_design",
]

_MODULES = {
    "analyse": "analysis",
    "JointPlan": "design",
    "joint_design": "design",
    "additivity_test": "inference",
    "holm": "inference",
    "PREDICTORS": "predictors",
    "AdditivityReport": "records",
    "AdditivityTest": "records",
    "Interval": "records",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
