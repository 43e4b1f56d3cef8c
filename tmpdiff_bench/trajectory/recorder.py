"""Recording a workload: reference, single and joint runs, each kept as a cell once it is done.

Killed at any moment, the same call goes on after the last run and ends with the same recording.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.experiment import Experiment
from tmpdiff_bench.levels import Level, LevelBank
from tmpdiff_bench.noise import keyed_noise
from tmpdiff_bench.pipelines import DTYPES, denoisers
from tmpdiff_bench.pipelines.calls import free_text_encoders
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.store import CellStore, clear_leftovers
from tmpdiff_bench.trajectory.assembly import ChunkRuns, Measures, Reference, assemble
from tmpdiff_bench.trajectory.engine import PrefixEngine, level_banks
from tmpdiff_bench.trajectory.jobs import REPLICATE_JITTER, Job, Jobs
from tmpdiff_bench.trajectory.recording import Recording
from tmpdiff_bench.trajectory.replay import NonFiniteLatentsError, Perturbation
from tmpdiff_bench.trajectory.setup import Setup, prepare
from tmpdiff_bench.trajectory.workload import environment

Cell = dict[str, NDArray[Any]]
_FAILED = "failed"  # in a cell: the message instead of arrays


def record(experiment: Experiment, out: Path | str, *, store: Path | None = None) -> Recording:
    """Record (or go on with, or reuse) an experiment in the folder `out`.

    All single runs, the experiment's `plans`, and `joint_plans` of each low level, of a design.
    Metrics that can't be had are named on stderr, with the reason.

    >>> import tempfile
    >>> small = Experiment("sd3", steps=3, levels=("fp32", "w4a4"), num_prompts=2, num_seeds=1)
    >>> record(small, tempfile.mkdtemp())
    Recording(sd3 (embedded, 3.5 M): 3 steps, fp32, w4a4; 2 samples, 4 joint plans)

    Raises:
        UsageError: a value that can't be used, with the way out; as `record_setup`.
        NonFiniteLatentsError: as `record_setup`.
    """
    recording = record_setup(prepare(experiment), Path(out), store=store)
    for name, about in recording.manifest["metrics"].items():
        if about["not_available"]:
            print(f"{name}: {about['not_available']}", file=sys.stderr)
    return recording


def record_setup(setup: Setup, folder: Path, *, store: Path | None = None) -> Recording:
    """Record what has been prepared into `folder`, or go on with, or reuse, what is there.

    Finished runs are kept in `store`, where other recordings find them; without one, in `folder`
    until it is whole. Levels with a low-rank branch are calibrated by a run of the denoiser, as it
    is, of the first samples. Where the pipeline was loaded in stages, text encoders run first and
    are freed.

    Raises:
        UsageError: `folder` or `store` is a file, `folder` holds another workload's recording, a
            joint plan is given twice or has fewer than two low steps, or a level, capture or metric
            is unknown.
        NonFiniteLatentsError: a run diverged. All other runs are stored, that one as failed.
    """
    for path in filter(None, (folder, store)):
        if path.exists() and not path.is_dir():
            raise UsageError(f"{path} is a file: name a folder")
    workload = setup.workload
    measures = Measures(setup.metrics, setup.image_size, setup.requirements)
    specs: dict[str, Any] = {} if setup.modules is None else setup.modules.specs()
    specs |= {name: asdict(Level.parse(name)) for name in setup.levels if name not in specs}
    count = len(denoisers(setup.loaded.pipeline))
    jobs = Jobs(workload, setup.levels, setup.joint, setup.capture, specs, measures.key, count)
    if (folder / "manifest.json").exists():
        found = Recording.open(folder)
        if found.manifest.get("key") != jobs.key:
            raise UsageError(
                f"{folder} holds a recording of other settings; name another folder with --out"
            )
        _clear(jobs, folder, store)
        return found
    started = time.perf_counter()
    recorder = _Recorder(setup, jobs, measures)
    chunks = recorder.run(CellStore(store or folder / "cells"))
    reference = chunks[0]["run"][0]
    manifest: dict[str, Any] = {
        "key": jobs.key,
        "title": setup.loaded.title,
        "dataset": setup.dataset,
        "workload": {
            **asdict(workload),
            "seeds": list(workload.seeds),
            "generator_seeds": list(workload.generator_seeds),
            "image_size": reference["image_size"].tolist(),
        },
        "schedule": {
            "scheduler": workload.sampler["class"],
            "timesteps": reference["timesteps"].tolist(),
            "sigmas": reference["sigmas"].tolist() if "sigmas" in reference else None,
        },
        "latent_shape": list(reference["final"].shape[1:]),
        "level_specs": {level: spec for level, spec in jobs.specs.items() if spec is not None},
        "environment": environment(str(setup.loaded.device)),
        "capture": setup.capture,
        "metrics": measures.about,
        # `computed` in these seconds; the rest was in the store
        "nfe": {
            **jobs.nfe(recorder.per_step),
            "computed": recorder.computed,
            "per_step": recorder.per_step,
        },
        "seconds": round(time.perf_counter() - started, 1),
        **setup.about,
    }
    recording = assemble(jobs, measures, chunks, manifest).save(folder)
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

    def __init__(self, setup: Setup, jobs: Jobs, measures: Measures) -> None:
        self.setup, self.jobs, self.workload = setup, jobs, setup.workload
        self._measures = measures
        self._memos: dict[Any, Any] = {}  # what encoders returned, by batch
        self._bar: tqdm[Any] = tqdm(
            desc=f"recording {self.workload.model}", unit="NFE", unit_scale=True, smoothing=0.05
        )
        self._planned = 0  # network evaluations of the jobs so far
        self.per_step: list[int] = []  # those of one sample, once they are known
        self.computed = 0

    def run(self, store: CellStore) -> list[ChunkRuns]:
        """All runs, chunk by chunk."""
        chunks, failures = [], dict[str, None]()
        with self._bar:
            for jobs in self.jobs.chunks:
                runs: ChunkRuns = {}
                for job in jobs:
                    cells = self._cells(job, store)
                    failed = [cell[_FAILED] for cell in cells if _FAILED in cell]
                    failures.update(dict.fromkeys(text.tobytes().decode() for text in failed))
                    runs[job.purpose] = cells
                    if _FAILED in cells[0]:
                        break  # without the chunk's reference there is nothing to compare with
                    self._move_to(job.nfe(self.per_step, job.plans))
                chunks.append(runs)
            if not failures:
                self._move_to(self.jobs.calibration_nfe(self.per_step))
        if failures:
            raise NonFiniteLatentsError("; ".join(failures))
        return chunks

    def _move_to(self, nfe: int) -> None:
        """The bar stands where the jobs so far end, whether they ran or were in the store."""
        self._planned += nfe
        self._bar.n = max(self._bar.n, min(self._planned, self._bar.total or 0))
        self._bar.refresh()

    def _spent(self, nfe: int) -> None:
        self.computed += nfe
        self._bar.update(nfe)

    def _know(self, per_step: NDArray[Any]) -> None:
        if not self.per_step:
            self.per_step = [int(nfe) for nfe in per_step]
            self._bar.total = self.jobs.nfe(self.per_step)["spent"]
            self._bar.refresh()

    def _cells(self, job: Job, store: CellStore) -> list[Cell]:
        """The cells of a job, from the store where they are there; the reference's alone where it
        failed.
        """
        found = {i: cell for i, key in enumerate(job.keys) if (cell := store.get(key)) is not None}
        if "nfe" in found.get(0, {}):
            self._know(found[0]["nfe"])
        missing = [i for i in range(len(job.keys)) if i not in found]
        if missing and _FAILED not in found.get(0, {}):
            for i, cell in self._computed(job, missing, found.get(0)):
                store.put(job.keys[i], cell)
                found[i] = cell
                if i == 0 and _FAILED in cell:
                    break
        return [found[i] for i in sorted(found)]

    def _computed(
        self, job: Job, missing: Sequence[int], reference: Cell | None
    ) -> Iterator[tuple[int, Cell]]:
        """Missing cells of a job by index, each when its run is done."""
        engine = self._engine(job)
        ids = [self.workload.samples[row][0] for row in job.rows]
        pictured = [j for j, row in enumerate(job.rows) if row in self.jobs.pictured]
        beside = None
        if job.purpose == "run" and reference is not None:
            images = engine.images(job.plans[0])
            beside = Reference(torch.from_numpy(reference["final"]), images, ids)
        for k, run in engine.each([job.plans[i] for i in missing]):
            i = missing[k]
            if isinstance(run, NonFiniteLatentsError):
                named = (self.workload.samples[row] for row in job.rows)
                among = ", ".join(f"{prompt} seed {seed}" for prompt, seed in named)
                yield i, {_FAILED: np.frombuffer(f"{run} (among {among})".encode(), dtype=np.uint8)}
                continue
            cell = {"final": run.final.numpy()}
            if job.purpose == "run":
                images = run.images()
                beside = beside or Reference(run.final, images, ids)
                if i:
                    cell["metrics"] = self._measures.values(run.final, images, beside)
                else:
                    cell |= _of_schedule(engine, images)
                    self._know(cell["nfe"])
                    if self._measures.of_any_run:
                        cell["reference_metrics"] = self._measures.of_reference(beside)
                pixels = (images[pictured] * 255).round().to(torch.uint8)
                cell["pictures"] = pixels.permute(0, 2, 3, 1).numpy()  # (m, H, W, 3)
                if job.plans[i] in self.jobs.captured:
                    cell["along"] = run.path.numpy()
            yield i, cell

    def _engine(self, job: Job) -> PrefixEngine:
        samples = [self.workload.samples[row] for row in job.rows]
        jitter = _jitter(samples, self.jobs.levels[0]) if job.purpose == "replicate" else None
        return self._made(job.rows, job.batch, self._banks, jitter)

    def _made(
        self,
        rows: Sequence[int],
        batch: int,
        banks: Mapping[str, LevelBank],
        perturb: Perturbation | None = None,
    ) -> PrefixEngine:
        return PrefixEngine(
            self.setup.loaded.pipeline,
            banks,
            self.setup.call.rows(rows),
            max_batch=batch,
            state_memory=self.setup.state_memory,
            perturb=perturb,
            on_nfe=self._spent,
            memos=self._memos,
        )

    @cached_property
    def _banks(self) -> dict[str, LevelBank]:
        """All levels, made when the first of them is needed: they may take the memory that text
        encoders had.
        """
        loaded, setup = self.setup.loaded, self.setup
        if loaded.later is not None:
            for job in (job for chunk in self.jobs.chunks for job in chunk):
                self._made(job.rows, job.batch, {}).encode()
            free_text_encoders(loaded.pipeline)
            loaded.complete()
        return level_banks(
            loaded.pipeline,
            setup.levels,
            quantized=self.workload.quantized,
            calibrate=self._calibrate,
            residency=setup.residency,
            modules=setup.modules,
            announce=lambda takes: tqdm.write(str(takes), file=sys.stderr),
        )

    def _calibrate(self) -> None:
        """Run the denoiser as it is on the first samples."""
        own = next(name for name in DTYPES if str(DTYPES[name]).endswith(self.workload.dtype))
        banks = level_banks(self.setup.loaded.pipeline, (own,), quantized=self.workload.quantized)
        rows = range(len(self.jobs.calibration))
        engine = self._made(rows, min(self.workload.max_batch, len(rows)), banks)
        engine.evaluate([PrecisionPlan.uniform(own, self.workload.steps)])


def _of_schedule(engine: PrefixEngine, images: Tensor) -> Cell:
    """What the reference's run has told of every other."""
    schedule = engine.schedule
    assert schedule is not None
    first = [schedule.step_of.index(step) for step in range(schedule.steps)]
    found = {
        "nfe": np.array(engine.nfe_per_step),
        "timesteps": np.array([schedule.timesteps[call] for call in first]),
        "image_size": np.array(images.shape[2:]),
    }
    if schedule.sigmas is not None:
        found["sigmas"] = np.array(schedule.sigmas)
    return found


def _jitter(samples: Sequence[tuple[str, int]], reference: str) -> Perturbation:
    """Adds keyed noise, as large as rounding noise, to what a low-precision step is given. Rows are
    those of the samples, once a guidance pass.
    """

    def perturb(latents: Tensor, step: int, level: str) -> Tensor:
        if level == reference:
            return latents
        noise = torch.stack(
            [keyed_noise(p, s, "replicate", latents.shape[1:], step=step) for p, s in samples]
        )
        passes = len(latents) // len(samples)
        size = REPLICATE_JITTER * latents.float().square().mean().sqrt()
        return latents + (size * torch.cat([noise] * passes).to(latents.device)).to(latents.dtype)

    return perturb
