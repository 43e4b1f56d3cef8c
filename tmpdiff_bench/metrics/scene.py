"""Does each image show what its prompt asked? Read by the recogniser of Scenes."""

from __future__ import annotations

import numpy as np

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.metrics.base import Comparison, Measured, NotAvailableError
from tmpdiff_bench.metrics.weights import scenes_recogniser
from tmpdiff_bench.zoo.recogniser import Verdict, judge, read

SIDE = 64


def objects(comparison: Comparison) -> Measured:
    """Share of the asked objects that each image shows: shape, colour and what else was said."""
    return Measured(np.array([v.found / v.asked for v in _verdicts(comparison)]))


def everything(comparison: Comparison) -> Measured:
    """1 where an image shows all that was asked and no other object, else 0."""
    return Measured(np.array([float(v.all) for v in _verdicts(comparison)]))


def _verdicts(comparison: Comparison) -> list[Verdict]:
    requirements = comparison.requirements
    if requirements is None:
        raise NotAvailableError("what the prompts require is known for Scenes prompts only")
    if len(requirements) != len(comparison.x):
        raise UsageError(f"{len(requirements)} requirements for {len(comparison.x)} images")
    readings = read(scenes_recogniser(str(comparison.x.device)), comparison.x.float())
    return [judge(asked, seen) for asked, seen in zip(requirements, readings, strict=True)]
