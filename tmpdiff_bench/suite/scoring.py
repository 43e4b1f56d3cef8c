"""Values of all metrics for plans on evaluation prompts, each plan run once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tmpdiff_bench.metrics import LATENT_METRICS, evaluate_images, get_metric
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.store.cells import Arrays
from tmpdiff_bench.suite.bench import LEVELS, Bench, Prompts
from tmpdiff_bench.suite.v1 import METRICS, OF_THE_IMAGE_ALONE

PICTURED = 2  # samples whose images are kept


@dataclass(frozen=True, eq=False)
class Score:
    """`values` (M, n) in the order of `METRICS`, and `pictures` uint8 (m, H, W, 3)."""

    values: NDArray[np.float64]
    pictures: NDArray[np.uint8]


class Scorer:
    """Scores of plans against the reference of `steps` steps, on evaluation `prompts`.

    A plan of fewer steps is run with so many, from the same noise. As in `MeasuredErrors`, the bits
    of a run depend on its plan alone.
    """

    def __init__(self, bench: Bench, prompts: Prompts, steps: int) -> None:
        self._bench, self.prompts, self._steps = bench, prompts, steps
        self._found: dict[PrecisionPlan, Score] = {}

    @property
    def reference(self) -> Score:
        """Of the reference run itself: against itself, and of its images alone."""
        return self[PrecisionPlan.uniform(LEVELS[0], self._steps)]

    def __getitem__(self, plan: PrecisionPlan) -> Score:
        if plan not in self._found:
            self.prepare([plan])
        return self._found[plan]

    def prepare(self, plans: Sequence[PrecisionPlan]) -> None:
        """Run and score plans that are not at hand, sharing their prefixes."""
        missing: dict[int, list[PrecisionPlan]] = {}
        for plan in dict.fromkeys(plans):
            cell = None if plan in self._found else self._bench.store.get(self._key(plan))
            if cell is not None:
                self._found[plan] = Score(cell["values"], cell["pictures"])
            elif plan not in self._found:
                missing.setdefault(len(plan), []).append(plan)
        for steps, some in missing.items():
            for plan, run in self._bench.runs(self.prompts, steps, some):
                score = self._score(run.final, run.images())
                cell = {"values": score.values, "pictures": score.pictures}
                self._bench.store.put(self._key(plan), cell)
                self._found[plan] = score

    def rows(self, plan: PrecisionPlan, *, alone: bool = False) -> Iterator[dict[str, Any]]:
        """A row per sample and metric; `alone`: metrics that need no reference only."""
        table, values = self.prompts.table, self[plan].values
        for metric, of_samples in zip(METRICS, values, strict=True):
            if alone and metric not in OF_THE_IMAGE_ALONE:
                continue
            for (_, prompt), value in zip(table.iterrows(), of_samples, strict=True):
                yield {
                    "prompt_id": prompt["prompt_id"],
                    "language": prompt["language"],
                    "seed": self.prompts.seed,
                    "metric": metric,
                    "value": float(value),
                }

    def _score(self, final: Tensor, images: Tensor) -> Score:
        reference, reference_images = self._reference_run
        of_images = evaluate_images(
            images,
            reference_images,
            [metric for metric in METRICS if metric not in LATENT_METRICS],
            requirements=self.prompts.requirements(),
        )
        rows = [
            of_images[metric].values
            if metric in of_images
            else LATENT_METRICS[metric](final, reference).tolist()
            for metric in METRICS
        ]
        values = np.array(rows, dtype=np.float64)
        pictures = (images[:PICTURED].clamp(0, 1) * 255).round().to(torch.uint8)
        return Score(values, pictures.permute(0, 2, 3, 1).contiguous().numpy())

    @cached_property
    def _reference_run(self) -> tuple[Tensor, Tensor]:
        """Final latents (n, ...) and images (n, 3, H, W) of the reference."""
        plan = PrecisionPlan.uniform(LEVELS[0], self._steps)
        key = self._bench.key(self.prompts, self._steps, purpose="scored reference")

        def run() -> Arrays:
            [(_, run)] = self._bench.runs(self.prompts, self._steps, [plan])
            return {"final": run.final.numpy(), "images": run.images().numpy()}

        cell = self._bench.store.kept(key, run)
        return torch.from_numpy(cell["final"]), torch.from_numpy(cell["images"])

    def _key(self, plan: PrecisionPlan) -> str:
        return self._bench.key(
            self.prompts,
            len(plan),
            purpose="score",
            plan=str(plan),
            against=self._steps,
            pictured=PICTURED,
            metrics=[[name, sorted(get_metric(name).weights().items())] for name in METRICS],
        )


class ShortRuns:
    """Errors on calibration samples of the reference with fewer steps."""

    def __init__(self, bench: Bench, prompts: Prompts, steps: int) -> None:
        self._scorer = Scorer(bench, prompts, steps)

    def __call__(self, steps: int) -> float:
        """The mean latent RMSE of a run of `steps` steps."""
        plan = PrecisionPlan.uniform(LEVELS[0], steps)
        return float(self._scorer[plan].values[METRICS.index("latent_rmse")].mean())
