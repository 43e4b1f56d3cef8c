"""What a step costs at a level, as far as problems need to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tmpdiff_bench.errors import unknown


class CostTable(Protocol):
    """Any table of costs; `name` says which, wherever a speedup is reported."""

    @property
    def name(self) -> str: ...

    def step_costs(self, levels: Sequence[str], steps: int) -> NDArray[np.float64]:
        """Costs (S, L) of every step at every level, in one unit."""


@dataclass(frozen=True)
class RelativeCosts:
    """The same declared cost for every step at a level: an assumption, and no measurement.

    >>> RelativeCosts("bit-proportional", {"fp32": 1.0, "w8a8": 0.5}).step_costs(["w8a8"], 2)
    array([[0.5],
           [0.5]])
    """

    name: str
    costs: Mapping[str, float]

    def step_costs(self, levels: Sequence[str], steps: int) -> NDArray[np.float64]:
        """Costs (S, L). Raises `UsageError` for a level without one."""
        for level in levels:
            if level not in self.costs:
                raise unknown(f"level in the costs {self.name!r}:", level, self.costs)
        return np.tile([float(self.costs[level]) for level in levels], (steps, 1))
