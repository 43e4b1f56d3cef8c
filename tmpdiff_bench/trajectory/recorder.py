"""Recording a workload: reference, single and joint runs, each kept as a cell once it is done.

Killed at any moment, the same call goes on after the last run and ends with the same recording.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.levels import LevelBank
from tmpdiff_bench.noise import initial_noise, keyed_noise
from tmpdiff_bench.pipelines import Conditioning, StepwisePipeline
from tmpdiff_bench.store import CellStore, clear_leftovers
from tmpdiff_bench.trajectory.assembly import ChunkRuns, assemble
from tmpdiff_bench.trajectory.engine import STATE_MEMORY, NonFiniteLatentsError, PrefixEngine
from tmpdiff_bench.trajectory.jobs import REPLICATE_JITTER, Job, Jobs, JointRun
from tmpdiff_bench.trajectory.measures import DEFAULT, Measures
from tmpdiff_bench.trajectory.recording import Recording
from tmpdiff_bench.trajectory.workload import Workload, environment
from tmpdiff_bench.zoo.captions import Requirement

Cell = dict[str, NDArray[Any]]
_FAILED = "failed"  # in a cell: the message instead of arrays


def record(
    pipeline: StepwisePipeline,
    workload: Workload,
    levels: Sequence[str],
    joint: Sequence[JointRun],
    folder: Path,
    *,
    title: str,
    dataset: str,
    device: str = "cpu",
    capture: str = "terminal",
    store: Path | None = None,
    state_memory: int = STATE_MEMORY,
    residency: str = "resident",
    level_specs: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
    metrics: Sequence[str] = DEFAULT,
    requirements: Mapping[str, Requirement] | None = None,
    on_encoded: Callable[[], object] | None = None,
) -> Recording:
    """Record `workload` into `folder`, or go on with, or reuse, the recording that is there.

    `levels[0]` is the reference; `level_specs` describes levels by name, as part of what a number
    depends on. The table has the `metrics` of every run; those that can't be had here are named in
    the manifest, with the reason. `requirements`: what prompts ask for, by id. `capture`:
    "terminal" keeps the latents of the reference at every step and the final ones of all other
    runs; "trajectory" those of single runs at every step as well. Finished runs are kept in
    `store`, where other recordings find them; without one, in `folder` until it is whole.
    `state_memory` bounds the bytes of intermediate states. `residency` as in `LevelBank`. Levels
    with a low-rank branch are calibrated by a run of the denoiser, as it is, of the first samples.
    `on_encoded` is called when prompts have been encoded, before anything else runs. `about` is
    added to the manifest.

    Raises:
        UsageError: `folder` or `store` is a file, `folder` holds another workload's recording, a
            joint plan is given twice or has fewer than two low steps, or a level, capture or metric
            is unknown.
        NonFiniteLatentsError: a run diverged. All other runs are stored, that one as failed.
    """
    for path in filter(None, (folder, store)):
        if path.exists() and not path.is_dir():
            raise UsageError(f"{path} is a file: name a folder")
    measures = Measures(metrics, workload.resolution, requirements)
    jobs = Jobs(workload, tuple(levels), tuple(joint), capture, level_specs or {}, measures.key)
    if (folder / "manifest.json").exists():
        found = Recording.open(folder)
        if found.manifest.get("key") != jobs.key:
            raise UsageError(
                f"{folder} holds a recording of other settings; name another folder with --out"
            )
        _clear(jobs, folder, store)
        return found
    started = time.perf_counter()
    recorder = _Recorder(pipeline, jobs, measures, state_memory, residency, on_encoded)
    chunks = recorder.run(CellStore(store or folder / "cells"))
    noise = initial_noise(workload.samples, pipeline.latent_shape)
    manifest: dict[str, Any] = {
        "key": jobs.key,
        "title": title,
        "dataset": dataset,
        "workload": {**vars(workload), "seeds": list(workload.seeds)},
        "level_specs": {level: spec for level, spec in jobs.specs.items() if spec is not None},
        "environment": environment(device),
        "capture": capture,
        "metrics": measures.about,
        "noise_digest": hashlib.sha256(noise.numpy().tobytes()).hexdigest(),
        # `computed` in these seconds; the rest was in the store
        "nfe": {**jobs.nfe(pipeline), "computed": recorder.computed},
        "seconds": round(time.perf_counter() - started, 1),
        **(about or {}),
    }
    recording = assemble(jobs, measures, chunks, manifest, title, dataset).save(folder)
    _clear(jobs, folder, store)
    return recording


def _clear(jobs: Jobs, folder: Path, store: Path | None) -> None:
    """Remove what a whole recording needs no more. Another process at the same work goes on: it has
    what it needs in memory.
    """
    if store is None:
        CellStore(folder / "cells").discard(jobs.keys)
    clear_leftovers(folder)


class _Recorder:
    """Runs what is not in the store."""

    def __init__(
        self,
        pipeline: StepwisePipeline,
        jobs: Jobs,
        measures: Measures,
        state_memory: int,
        residency: str,
        on_encoded: Callable[[], object] | None,
    ) -> None:
        self.pipeline, self.jobs, self.workload = pipeline, jobs, jobs.workload
        self._measures, self._on_encoded = measures, on_encoded
        self._state_memory, self._residency = state_memory, residency
        self._bank: LevelBank | None = None
        self.computed = 0

    def run(self, store: CellStore) -> list[ChunkRuns]:
        """All runs, chunk by chunk."""
        chunks, failures = [], dict[str, None]()
        total = self.jobs.nfe(self.pipeline)["spent"]
        with tqdm(
            total=total,
            desc=f"recording {self.workload.model}",
            unit="NFE",
            unit_scale=True,
            smoothing=0.05,
        ) as bar:
            for jobs in self.jobs.chunks:
                runs: ChunkRuns = {}
                for job in jobs:
                    cells = self._cells(job, store, bar)
                    failed = [cell[_FAILED] for cell in cells if _FAILED in cell]
                    failures.update(dict.fromkeys(text.tobytes().decode() for text in failed))
                    runs[job.purpose] = cells
                    if _FAILED in cells[0]:
                        break  # without the chunk's reference there is nothing to compare with
                chunks.append(runs)
            if self._bank is None:
                bar.update(self.jobs.calibration_nfe(self.pipeline))
        if failures:
            raise NonFiniteLatentsError("; ".join(failures))
        return chunks

    def _cells(self, job: Job, store: CellStore, bar: tqdm[Any]) -> list[Cell]:
        """The cells of a job, from the store where they are there; the reference's alone where it
        failed.
        """
        found = {i: cell for i, key in enumerate(job.keys) if (cell := store.get(key)) is not None}
        missing = [i for i in range(len(job.keys)) if i not in found]
        left = job.nfe(self.pipeline, [job.plans[i] for i in missing])
        bar.update(job.nfe(self.pipeline, job.plans) - left)
        if missing and _FAILED not in found.get(0, {}):

            def advance(nfe: int) -> None:
                self.computed += nfe
                bar.update(nfe)

            for i, cell in self._computed(job, missing, found.get(0), advance):
                store.put(job.keys[i], cell)
                found[i] = cell
                if i == 0 and _FAILED in cell:
                    break
        return [found[i] for i in sorted(found)]

    def _computed(
        self,
        job: Job,
        missing: Sequence[int],
        reference: Cell | None,
        advance: Callable[[int], None],
    ) -> Iterator[tuple[int, Cell]]:
        """Missing cells of a job by index, each when its run is done."""
        measure = None
        for k, run in self._engine(job, advance).each([job.plans[i] for i in missing]):
            i = missing[k]
            if isinstance(run, NonFiniteLatentsError):
                named = (self.workload.samples[row] for row in job.rows)
                among = ", ".join(f"{prompt} seed {seed}" for prompt, seed in named)
                yield i, {_FAILED: np.frombuffer(f"{run} (among {among})".encode(), dtype=np.uint8)}
                continue
            cell = {"final": run[-1]}
            if job.purpose == "run":
                if measure is None:
                    final = run[-1] if reference is None else torch.from_numpy(reference["final"])
                    ids = [self.workload.samples[row][0] for row in job.rows]
                    measure = _Measure(self.pipeline, self._measures, final, ids)
                images = measure.reference_images
                if i:
                    cell["metrics"], images = measure(run[-1])
                elif self._measures.of_any_run:
                    cell["reference_metrics"] = measure.of_reference()
                pictured = [j for j, row in enumerate(job.rows) if row in self.jobs.pictured]
                cell["pictures"] = _as_bytes(images[pictured])
                if job.plans[i] in self.jobs.captured:
                    cell["along"] = run
            yield i, {name: value.numpy() for name, value in cell.items()}

    def _engine(self, job: Job, advance: Callable[[int], None]) -> PrefixEngine:
        rows = list(job.rows)
        samples = [self.workload.samples[row] for row in rows]
        jitter = _jitter(samples, self.jobs.levels[0]) if job.purpose == "replicate" else None
        conditioning = self._conditioning[rows]  # first: levels may need the encoders' memory
        return PrefixEngine(
            self.pipeline,
            self._levels(advance),
            conditioning,
            initial_noise(samples, self.pipeline.latent_shape),
            max_batch=job.batch,
            state_memory=self._state_memory,
            perturb=jitter,
            on_nfe=advance,
        )

    def _levels(self, advance: Callable[[int], None]) -> LevelBank:
        """All levels, made when the first of them is needed."""
        pipeline, samples = self.pipeline, self.jobs.calibration

        def calibrate() -> None:
            for start in range(0, len(samples), self.workload.max_batch):
                rows = list(range(start, min(start + self.workload.max_batch, len(samples))))
                noise = initial_noise([samples[row] for row in rows], pipeline.latent_shape)
                state = pipeline.initial_state(noise)
                for step in range(pipeline.steps):
                    conditioning = self._conditioning[rows]
                    state = pipeline.step(state, step, pipeline.denoiser, conditioning)
                    advance(len(rows) * pipeline.nfe(step))

        if self._bank is None:
            self._bank = LevelBank(
                pipeline.denoiser, self.jobs.levels, pipeline.quantized, calibrate, self._residency
            )
        return self._bank

    @cached_property
    def _conditioning(self) -> Conditioning:
        """Conditioning of every sample; each prompt is encoded alone, so that its numbers do not
        depend on the others.
        """
        encoded = [self.pipeline.encode([text]) for text in self.workload.prompts.values()]
        if self._on_encoded is not None:
            self._on_encoded()
        each = [c for c in encoded for _ in self.workload.seeds]
        return Conditioning(
            {k: torch.cat([c.positive[k] for c in each]) for k in each[0].positive},
            {k: torch.cat([c.negative[k] for c in each]) for k in each[0].negative},
        )


class _Measure:
    """Metrics of runs against the reference's final latents (n, c, h, w); `ids` of its prompts."""

    def __init__(
        self, pipeline: StepwisePipeline, measures: Measures, reference: Tensor, ids: list[str]
    ) -> None:
        self._pipeline, self._measures = pipeline, measures
        self._reference, self._ids = reference, ids
        self.reference_images = self._images(reference)

    def __call__(self, final: Tensor) -> tuple[Tensor, Tensor]:
        """Values (metrics, n) float64, and images (n, 3, H, W)."""
        images = self._images(final)
        values = self._measures.values(
            final, self._reference, images, self.reference_images, self._ids
        )
        return torch.from_numpy(values), images

    def of_reference(self) -> Tensor:
        """Values of the reference's own images, (metrics, n) float64."""
        return torch.from_numpy(self._measures.of_reference(self.reference_images, self._ids))

    def _images(self, latents: Tensor) -> Tensor:
        device = next(self._pipeline.denoiser.parameters()).device
        return self._pipeline.decode(latents.to(device)).cpu()


def _as_bytes(images: Tensor) -> Tensor:
    """8-bit images (n, H, W, 3)."""
    return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def _jitter(
    samples: Sequence[tuple[str, int]], reference: str
) -> Callable[[Tensor, int, str], Tensor]:
    """Adds keyed noise, as large as rounding noise, to what a low-precision step starts from."""

    def perturb(latents: Tensor, step: int, level: str) -> Tensor:
        if level == reference:
            return latents
        noise = torch.stack(
            [keyed_noise(p, s, "replicate", latents.shape[1:], step=step) for p, s in samples]
        )
        size = REPLICATE_JITTER * latents.float().square().mean().sqrt()
        return latents + (size * noise.to(latents.device)).to(latents.dtype)

    return perturb
