"""From the cells of all runs to a recording."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from tmpdiff_bench.metrics import LATENT_METRICS
from tmpdiff_bench.trajectory.jobs import Jobs, Purpose
from tmpdiff_bench.trajectory.measures import Measures
from tmpdiff_bench.trajectory.recording import Recording

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
