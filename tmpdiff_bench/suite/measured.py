"""Errors of plans on calibration samples, each plan run once, whoever asks for it; and how far the
same cells drift at another batch size, thread count and dtype.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tmpdiff_bench.metrics import LATENT_METRICS
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.problems.costs import mean_products, with_reference
from tmpdiff_bench.store.cells import Arrays
from tmpdiff_bench.suite.bench import LEVELS, Bench, Prompts
from tmpdiff_bench.suite.tasks import Group
from tmpdiff_bench.suite.v1 import MATCHED
from tmpdiff_bench.trajectory import PrefixEngine

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

        def finals() -> Arrays:
            runs = self._bench.runs(self._prompts, self._steps, plans)
            found = {plan: run.final for plan, run in runs}
            return {"finals": torch.stack([found[plan] for plan in plans]).numpy()}

        return torch.from_numpy(self._bench.store.kept(key, finals)["finals"])

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
        means = [self._errors(final).mean() for final in self._finals[1:]]
        return with_reference(means, self._steps)

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
            cell = self._bench.store.kept(
                self._key([plan], "error"),
                lambda: {"errors": self._errors(self._engine.evaluate([plan])[0])[None]},
            )
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
        return [
            PrecisionPlan.uniform(LEVELS[0], self._steps),
            *PrecisionPlan.singles(LEVELS, self._steps),
        ]

    def prepare(self, plans: Sequence[PrecisionPlan]) -> None:
        for part in parts(plans):
            cell = self._bench.store.kept(self._key(part, "errors"), partial(self._errors_of, part))
            self._prepared.update(zip(part, cell["errors"], strict=True))

    @cached_property
    def _engine(self) -> PrefixEngine:
        return self._bench.engine(self._prompts, self._steps)

    def _errors_of(self, plans: Sequence[PrecisionPlan]) -> Arrays:
        runs = self._bench.runs(self._prompts, self._steps, plans)
        found = {plan: self._errors(run.final) for plan, run in runs}
        return {"errors": np.stack([found[plan] for plan in plans])}

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


CONDITIONS = ("batch 1", "other threads", "bfloat16")


def drift_rows(
    bench: Bench, group: Group, prompts: Prompts, smallest: float
) -> Iterator[dict[str, Any]]:
    """Rows of the table of drift: the uniform plans of all levels, run again under each condition,
    against the same plans as the suite runs them.

    Each distance stands beside `smallest`, the least error of a single plan on the same samples:
    what does not exceed the drift is no measurement (DESIGN section 5).
    """
    plans = [PrecisionPlan.uniform(level, group.steps) for level in LEVELS]
    own = _finals(bench, prompts, plans, "own")
    for condition in conditions():
        again = _finals(bench, prompts, plans, condition)
        for plan, final, base in zip(plans, again, own, strict=True):
            distances = LATENT_METRICS[MATCHED](final, base).double().tolist()
            for (prompt, seed), distance in zip(prompts.samples, distances, strict=True):
                yield {
                    "model": group.model,
                    "prompt_set": group.prompt_set,
                    "steps": group.steps,
                    "condition": condition,
                    "plan": str(plan),
                    "prompt_id": prompt,
                    "seed": seed,
                    "latent_rmse": distance,
                    "smallest_single_error": smallest,
                    "ratio": distance / smallest,
                }


def conditions() -> tuple[str, ...]:
    """What is varied; of threads, one where there are more, else two."""
    return ("batch 1", f"threads {_other_threads()}", "bfloat16")


def drift_nfe(per_loop: int, samples: int) -> int:
    """Network evaluations of `drift_rows`: the suite's own condition, and the others."""
    return (1 + len(CONDITIONS)) * len(LEVELS) * per_loop * samples


def _finals(
    bench: Bench, prompts: Prompts, plans: Sequence[PrecisionPlan], condition: str
) -> Tensor:
    """Final latents (P, n, ...) under a condition, from the store where they are there."""
    steps, texts = len(plans[0]), [str(plan) for plan in plans]
    key = bench.key(prompts, steps, purpose="drift", plans=texts, condition=condition)

    def finals() -> Arrays:
        mine = bench
        if condition == "bfloat16":
            mine = Bench(bench.model.name, bench.store, bench.on_nfe, dtype="bf16")
        batch = 1 if condition == "batch 1" else None
        with _threads(_other_threads() if condition.startswith("threads") else None):
            runs = dict(mine.runs(prompts, steps, plans, max_batch=batch))
        return {"finals": torch.stack([runs[plan].final for plan in plans]).numpy()}

    return torch.from_numpy(bench.store.kept(key, finals)["finals"])


def _other_threads() -> int:
    return 1 if torch.get_num_threads() > 1 else 2


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
