"""What problems are made of: costs of a run's steps, products of deviations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tmpdiff_bench.errors import check_known


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
            check_known(f"level in the costs {self.name!r}:", level, self.costs)
        return np.tile([float(self.costs[level]) for level in levels], (steps, 1))


def costs_of_run(
    table: CostTable, levels: Sequence[str], nfe_per_step: Sequence[int]
) -> NDArray[np.float64]:
    """Costs (S, L) of a run's steps: 0 where the network is not called, as image-to-image runs
    begin in the middle of the schedule.

    >>> costs_of_run(RelativeCosts("assumed", {"fp32": 1.0, "w8a8": 0.5}), ["w8a8"], [0, 1])
    array([[0. ],
           [0.5]])
    """
    ran = np.asarray(nfe_per_step, dtype=np.float64) > 0
    return np.where(ran[:, None], table.step_costs(levels, len(ran)), 0.0)


def mean_products(deviations: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean products (K, K) of deviations (K, n D) over samples and latent elements."""
    exact = np.asarray(deviations, dtype=np.float64)
    return np.asarray(exact @ exact.T / exact.shape[1])


def with_reference(singles: ArrayLike, steps: int) -> NDArray[np.float64]:
    """Errors (S, L) of single errors (S (L-1),), by level, then step; the reference's are 0."""
    values = np.asarray(singles, dtype=np.float64).reshape(-1, steps)
    return np.vstack([np.zeros(steps), values]).T.copy()
