"""Precision levels: formats, named levels, and a denoiser at all of them.

Names are imported when they are first used: to read the name of a level needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from tmpdiff_bench.levels.level import LEVEL_NAMES, Level

if TYPE_CHECKING:
    from tmpdiff_bench.levels.bank import LevelBank
    from tmpdiff_bench.levels.devices import Device, reason_against
    from tmpdiff_bench.levels.formats import FORMATS, quantize_dequantize
    from tmpdiff_bench.levels.memory import RESIDENCIES, Memory

__all__ = [
    "FORMATS",
    "LEVEL_NAMES",
    "RESIDENCIES",
    "Device",
    "Level",
    "LevelBank",
    "Memory",
    "quantize_dequantize",
    "reason_against",
]

_MODULES = {
    "FORMATS": "formats",
    "RESIDENCIES": "memory",
    "Device": "devices",
    "LevelBank": "bank",
    "Memory": "memory",
    "quantize_dequantize": "formats",
    "reason_against": "devices",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
