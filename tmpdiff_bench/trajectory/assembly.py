"""Which metrics a recording holds, and how it is made of the cells of all runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.metrics import LATENT_METRICS, METRICS, Metric, get_metric
from tmpdiff_bench.metrics.base import Comparison
from tmpdiff_bench.trajectory.jobs import Jobs, Purpose
from tmpdiff_bench.trajectory.recording import Recording
from tmpdiff_bench.zoo.captions import Requirement

ALWAYS = ("latent_rmse", "latent_mse")  # what latents give at once, and the analysis builds on
DEFAULT: tuple[str, ...] = (*ALWAYS, "image_rmse", "one_minus_ssim")


def chosen_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """`ALWAYS`, then the metrics asked for.

    Raises:
        UsageError: an unknown name, with the nearest one, or a metric of whole sets.
    """
    for name in names:
        if get_metric(name).per == "set":
            raise UsageError(
                f"{name} compares sets of images: a recording holds values per prompt and seed; "
                "use tmpdiff_bench.metrics.evaluate_images on images of your own"
            )
    return tuple(dict.fromkeys((*ALWAYS, *names)))


@dataclass(frozen=True, eq=False)
class Reference:
    """The reference's final latents (n, ...) and images (n, 3, H, W), and the prompts' ids."""

    final: Tensor
    images: Tensor
    ids: list[str]


class Measures:
    """The metrics of a recording, tried on one pair first, so that what can't be had is known
    before anything runs. `requirements`: what was asked of the images, by prompt id.

    Raises:
        UsageError: as `chosen_metrics`.
    """

    def __init__(
        self,
        names: Sequence[str],
        resolution: tuple[int, int],
        requirements: Mapping[str, Requirement] | None = None,
    ) -> None:
        asked = [METRICS[name] for name in chosen_metrics(names)]
        self._requirements = dict(requirements or {})
        pair = torch.zeros(1, 3, *resolution)
        known = list(self._requirements.values())[:1] or None
        tried = {metric: metric(Comparison(pair, pair, known)) for metric in asked}
        self._metrics = [metric for metric in asked if not tried[metric].not_available]
        self.not_available = {
            metric.name: value.not_available
            for metric, value in tried.items()
            if value.not_available
        }
        # for a manifest: all that values depend on, and which metrics are errors: 0 for the
        # reference itself, so that errors of steps can be asked to add up
        self.about: dict[str, dict[str, Any]] = {
            metric.name: {
                "error": metric.identical == 0,
                "higher_is_better": metric.higher_is_better,
                "unit": metric.unit,
                "version": value.version,
                "weights": dict(value.weights),
                "resize": value.resize,
                "not_available": value.not_available,
            }
            for metric, value in tried.items()
        }

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics that there are values of."""
        return tuple(metric.name for metric in self._metrics)

    @property
    def of_any_run(self) -> tuple[str, ...]:
        """Those that the reference run has a value of its own of."""
        return tuple(metric.name for metric in self._of_any_run)

    @property
    def _of_any_run(self) -> list[Metric]:
        return [metric for metric in self._metrics if not metric.symmetric]

    @property
    def key(self) -> dict[str, dict[str, str]]:
        """What a stored value depends on: metrics and their weights; empty for the default ones."""
        if self.names == DEFAULT:
            return {}
        return {name: self.about[name]["weights"] for name in self.names}

    def values(self, final: Tensor, images: Tensor, reference: Reference) -> NDArray[np.float64]:
        """Values (M, n) of a run's latents and images against the reference's."""
        sides = {
            "latents": Comparison(final, reference.final),
            "images": Comparison(images, reference.images, self._wanted(reference)),
        }
        return np.array([self._value(metric, sides[metric.of]) for metric in self._metrics])

    def of_reference(self, reference: Reference) -> NDArray[np.float64]:
        """Values (A, n) of the reference's own images, of the metrics `of_any_run`."""
        own = Comparison(reference.images, reference.images, self._wanted(reference))
        return np.array([self._value(metric, own) for metric in self._of_any_run])

    def _wanted(self, reference: Reference) -> list[Requirement] | None:
        return [self._requirements[i] for i in reference.ids] if self._requirements else None

    def _value(self, metric: Metric, comparison: Comparison) -> tuple[float, ...]:
        value = metric(comparison)
        if value.not_available:  # a weight file that went while the recording ran
            raise UsageError(f"{metric.name}: {value.not_available}")
        return value.values


COLUMNS = ("model", "dataset", "plan", "kind", "prompt_id", "seed", "metric", "value")
# cells of a chunk's jobs: "final" (n, ...); of runs also "pictures", "metrics" (M, n) unless it is
# the reference's, which may have "reference_metrics" (A, n), and "along" (R, n, ...), after each
# step that ran, where it is captured
ChunkRuns = dict[Purpose, list[dict[str, NDArray[Any]]]]


def assemble(
    jobs: Jobs,
    measures: Measures,
    chunks: Sequence[ChunkRuns],
    manifest: dict[str, Any],
) -> Recording:
    """The recording of all chunks; its numerical floor is added to the manifest."""

    def joined(purpose: Purpose, name: str, axis: int) -> NDArray[Any]:
        """One array over all samples, plans first, of the plans that have it."""
        parts = [
            np.stack([cell[name] for cell in chunk[purpose] if name in cell])
            for chunk in chunks
            if purpose in chunk
        ]
        return np.concatenate(parts, axis=axis)

    finals = _flat(joined("run", "final", axis=1), 2)
    reference, deviations = finals[0], finals - finals[0]
    cells, singles = (len(jobs.levels) - 1, jobs.workload.steps), 1 + len(jobs.singles)
    along = _flat(joined("run", "along", axis=2), 3)
    paths = None
    if len(along) > 1:
        paths = (along[1:] - along[0]).reshape(*cells, *along.shape[1:])
    replicates = _flat(joined("replicate", "final", axis=1), 2) - reference[jobs.replicated]
    floor = _floor(chunks)
    pictures = joined("run", "pictures", axis=1)
    runs = [(str(plan), "single") for plan in jobs.singles]
    runs += [(str(run.plan), "joint") for run in jobs.joint]
    table = _rows(jobs, runs, measures.names, joined("run", "metrics", axis=2))
    if own := measures.of_any_run:
        values = joined("run", "reference_metrics", axis=2)
        reference_rows = _rows(jobs, [(str(jobs.reference), "reference")], own, values)
        table = pd.concat([table, reference_rows], ignore_index=True)
    return Recording(
        levels=jobs.levels,
        steps=jobs.workload.steps,
        samples=jobs.workload.samples,
        prompts=jobs.workload.prompts,
        reference=reference,
        singles=deviations[1:singles].reshape(*cells, *deviations.shape[1:]),
        replicates=replicates.reshape(*cells, *replicates.shape[1:]),
        replicate_rows=jobs.replicated,
        plans=tuple(run.plan for run in jobs.joint),
        kinds=tuple(run.kind for run in jobs.joint),
        held_out=np.array([run.held_out for run in jobs.joint], dtype=np.bool_),
        joint=deviations[singles:],
        floor=floor,
        table=table.assign(model=manifest["title"], dataset=manifest["dataset"])[list(COLUMNS)],
        pictures={
            "reference" if i == 0 else str(plan): pictures[i] for i, plan in enumerate(jobs.runs)
        },
        picture_rows=jobs.pictured,
        manifest={**manifest, "numerical_floor": float(floor.mean(dtype=np.float64))},
        reference_path=along[0],
        single_paths=paths,
    )


def _flat(array: NDArray[Any], axes: int) -> NDArray[Any]:
    """With all axes after the first ones as one."""
    return array.reshape(*array.shape[:axes], -1)


def _floor(chunks: Sequence[ChunkRuns]) -> NDArray[np.float32]:
    """Latent RMSE of the reference rerun at another batch size, by sample."""
    parts = []
    for chunk in chunks:
        final = torch.from_numpy(chunk["run"][0]["final"])
        again = torch.from_numpy(chunk["floor"][0]["final"][: len(final)])
        parts.append(LATENT_METRICS["latent_rmse"](again, final).numpy())
    floor: NDArray[np.float32] = np.concatenate(parts).astype(np.float32)
    return floor


def _rows(
    jobs: Jobs,
    runs: Sequence[tuple[str, str]],
    names: Sequence[str],
    values: NDArray[np.float64],
) -> pd.DataFrame:
    """One row per (run, metric, sample) of values (R, M, n); `runs`: plans with their kinds."""
    samples = jobs.workload.samples
    per_run = len(names) * len(samples)
    return pd.DataFrame(
        {
            "plan": np.repeat([plan for plan, _ in runs], per_run),
            "kind": np.repeat([kind for _, kind in runs], per_run),
            "prompt_id": np.tile([p for p, _ in samples], len(runs) * len(names)),
            "seed": np.tile([s for _, s in samples], len(runs) * len(names)),
            "metric": np.tile(np.repeat(names, len(samples)), len(runs)),
            "value": values.ravel(),
        }
    )
