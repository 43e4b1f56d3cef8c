"""Errors of plans on calibration samples, each plan run once, whoever asks for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from tmpdiff_bench.metrics import LATENT_METRICS
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.problems.live import mean_products
from tmpdiff_bench.suite.bench import LEVELS, Bench, Prompts
from tmpdiff_bench.suite.v1 import MATCHED
from tmpdiff_bench.trajectory import NonFiniteLatentsError, PrefixEngine

Floats = NDArray[np.float64]
CHUNK = 128  # plans of a cell where all plans are run: some seconds of work


class Errors(Protocol):
    """Where the errors of a group's plans come from."""

    @property
    def singles(self) -> Floats:
        """Errors of single plans (S, L), L being all levels of the suite."""
        ...

    @property
    def gram(self) -> Floats:
        """Mean products of terminal deviations, (S (L-1), S (L-1)), by level, then step."""
        ...

    def __call__(self, plan: PrecisionPlan) -> float:
        """The mean error over the calibration samples."""
        ...

    def prepare(self, plans: Sequence[PrecisionPlan]) -> None:
        """Have the errors of a fixed list of plans at hand."""
        ...


def single_plans(steps: int) -> list[PrecisionPlan]:
    """By level, then step."""
    return [
        PrecisionPlan.single(LEVELS[0], level, step, steps)
        for level in LEVELS[1:]
        for step in range(steps)
    ]


class MeasuredErrors:
    """Errors that are measured on `prompts`, or found in the store.

    Every run has its samples as a batch of its own (`Bench.engine`), so that its bits are the same
    in a list, alone, and in any order.
    """

    def __init__(self, bench: Bench, prompts: Prompts, steps: int) -> None:
        self._bench, self._prompts, self._steps = bench, prompts, steps
        self._prepared: dict[PrecisionPlan, Floats] = {}

    @cached_property
    def _finals(self) -> torch.Tensor:
        """Final latents of the reference and all single plans, (1 + S (L-1), n, ...)."""
        plans = self._recorded_plans
        key = self._key(plans, "singles")
        cell = self._bench.store.get(key)
        if cell is None:
            runs = dict(self._runs(plans))
            cell = {"finals": torch.stack([runs[plan] for plan in plans]).numpy()}
            self._bench.store.put(key, cell)
        return torch.from_numpy(cell["finals"])

    @property
    def reference(self) -> torch.Tensor:
        """Final latents of the reference run, (n, ...)."""
        return self._finals[0]

    @cached_property
    def smallest_single(self) -> float:
        """The least error of a single plan."""
        return float(self.singles[:, 1:].min())

    @cached_property
    def singles(self) -> Floats:
        rows = [self._errors(final).mean() for final in self._finals[1:]]
        found = np.array(rows).reshape(len(LEVELS) - 1, self._steps).T
        return np.column_stack([np.zeros(self._steps), found])

    @cached_property
    def gram(self) -> Floats:
        return mean_products((self._finals[1:] - self.reference).flatten(1).numpy())

    def __call__(self, plan: PrecisionPlan) -> float:
        return float(self.samples(plan).mean())

    def samples(self, plan: PrecisionPlan) -> Floats:
        """Errors by sample, (n,)."""
        if plan in self._recorded:
            return self._recorded[plan]
        if plan not in self._prepared:
            key = self._key([plan], "error")
            cell = self._bench.store.get(key)
            if cell is None:
                final = self._engine.evaluate([plan])[0]
                cell = {"errors": self._errors(final)[None]}
                self._bench.store.put(key, cell)
            self._prepared[plan] = cell["errors"][0]
        return self._prepared[plan]

    @cached_property
    def _recorded(self) -> dict[PrecisionPlan, Floats]:
        """Errors by sample of the reference and the single plans."""
        return {
            plan: self._errors(final)
            for plan, final in zip(self._recorded_plans, self._finals, strict=True)
        }

    @property
    def _recorded_plans(self) -> list[PrecisionPlan]:
        return [PrecisionPlan.uniform(LEVELS[0], self._steps), *single_plans(self._steps)]

    def prepare(self, plans: Sequence[PrecisionPlan]) -> None:
        for part in parts(plans):
            key = self._key(part, "errors")
            cell = self._bench.store.get(key)
            if cell is None:
                runs = {plan: self._errors(final) for plan, final in self._runs(part)}
                cell = {"errors": np.stack([runs[plan] for plan in part])}
                self._bench.store.put(key, cell)
            self._prepared.update(zip(part, cell["errors"], strict=True))

    @cached_property
    def _engine(self) -> PrefixEngine:
        return self._bench.engine(self._prompts, self._steps)

    def _runs(self, plans: Sequence[PrecisionPlan]) -> Iterator[tuple[PrecisionPlan, torch.Tensor]]:
        """Plans with their final latents."""
        for index, run in self._bench.engine(self._prompts, self._steps).each(plans):
            if isinstance(run, NonFiniteLatentsError):
                raise run
            yield plans[index], run.final

    def _errors(self, final: torch.Tensor) -> Floats:
        found: Floats = LATENT_METRICS[MATCHED](final, self.reference).double().numpy()
        return found

    def _key(self, plans: Sequence[PrecisionPlan], purpose: str) -> str:
        return self._bench.key(
            self._prompts, self._steps, purpose=purpose, plans=[str(plan) for plan in plans]
        )


def parts(plans: Sequence[PrecisionPlan]) -> Iterator[list[PrecisionPlan]]:
    """Plans by cell."""
    for start in range(0, len(plans), CHUNK):
        yield list(plans[start : start + CHUNK])
