"""Precision levels: formats, named levels, and a denoiser at all of them."""

from tmpdiff_bench.levels.bank import LevelBank
from tmpdiff_bench.levels.formats import FORMATS, quantize_dequantize
from tmpdiff_bench.levels.level import LEVEL_NAMES, Level

__all__ = ["FORMATS", "LEVEL_NAMES", "Level", "LevelBank", "quantize_dequantize"]
