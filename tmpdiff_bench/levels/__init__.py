"""Precision levels: formats, named levels, and a denoiser at all of them."""

from tmpdiff_bench.levels.bank import LevelBank
from tmpdiff_bench.levels.devices import Device, reason_against
from tmpdiff_bench.levels.formats import FORMATS, quantize_dequantize
from tmpdiff_bench.levels.level import LEVEL_NAMES, Level
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
