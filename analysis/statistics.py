"""Intervals as tables and words of ours hold them, from the suite's bootstrap by prompt."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tmpdiff_bench.statistics import Interval, paired_interval

Array = NDArray[np.float64]
ALPHA = 0.05


def mean_interval(values: Array, least: float = -math.inf, most: float = math.inf) -> Interval:
    """The mean of one value per unit with its interval, cut at what values can be (`least`,
    `most`); no bounds where none can be had (below three units, or values that are not finite, as
    PSNR of equal images).
    """
    if not len(values) or not np.isfinite(values).all():
        return Interval(float(np.mean(values)) if len(values) else math.nan, math.nan, math.nan)
    found = paired_interval(values)
    return Interval(found.estimate, max(found.low, least), min(found.high, most))


def ratio_interval(logs: Interval) -> Interval:
    """The ratio that a mean log ratio stands for."""
    return Interval(math.exp(logs.estimate), math.exp(logs.low), math.exp(logs.high))
