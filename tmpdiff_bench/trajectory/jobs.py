"""What has to be run for a recording, and under which key each run is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tmpdiff_bench.errors import UsageError, check_known
from tmpdiff_bench.experiment import CAPTURES
from tmpdiff_bench.plan import JointPlan, PrecisionPlan, nodes_per_step
from tmpdiff_bench.trajectory.workload import Workload

REPLICATED_SAMPLES = 4
PICTURED_SAMPLES = 4
CALIBRATION_SAMPLES = 4
# relative size of the jitter that makes a replicate: a few float32 ulps, as another batch would
REPLICATE_JITTER = 1e-6

Purpose = Literal["run", "floor", "replicate"]


@dataclass(frozen=True)
class Job:
    """Plans to run as one tree on some samples (`rows` of the workload's), `batch` of them in one
    pass of the network; each plan is kept under its key.

    The purpose is "run", or "floor": the reference rerun at another batch size, or "replicate":
    single runs from jittered inputs.
    """

    purpose: Purpose
    rows: tuple[int, ...]
    batch: int
    plans: tuple[PrecisionPlan, ...]
    keys: tuple[str, ...]

    def nfe(self, per_step: Sequence[int], plans: Sequence[PrecisionPlan]) -> int:
        """Network evaluations that some of its plans take, `per_step` of one sample."""
        if not plans:
            return 0
        # steps that no run comes to (image-to-image begins later) tell no plans apart
        first = next((step for step, nfe in enumerate(per_step) if nfe), 0)
        ran = [PrecisionPlan(plan.levels[first:]) for plan in plans]
        nodes = zip(nodes_per_step(ran), per_step[first:], strict=True)
        return sum(n * nfe for n, nfe in nodes) * len(self.rows)


class Jobs:
    """All jobs of a recording: chunks of `workload.max_batch` samples, several jobs each.

    `specs` describes levels by name: what a level does is part of the keys of runs that use it. If
    it has a low-rank branch, so are the `calibration` samples, on which its inputs were measured,
    once for each of `denoisers`. So are `metrics`, unless they are the default (`Measures.key`).

    Raises:
        UsageError: there is no low level, a joint plan is given twice or has fewer than two low
            steps, or `capture` is unknown.
    """

    def __init__(
        self,
        workload: Workload,
        levels: tuple[str, ...],
        joint: tuple[JointPlan, ...],
        capture: str,
        specs: Mapping[str, Any],
        metrics: Mapping[str, Any] | None = None,
        denoisers: int = 1,
    ) -> None:
        check_known("capture", capture, CAPTURES)
        if len(levels) < 2:
            raise UsageError(f"levels are {', '.join(levels)}: at least one low level is needed")
        self.workload, self.levels, self.joint = workload, levels, joint
        reference, steps = levels[0], workload.steps
        self.reference = PrecisionPlan.uniform(reference, steps)
        self.singles = tuple(PrecisionPlan.singles(levels, steps))
        self.runs = (self.reference, *self.singles, *(run.plan for run in joint))
        low = [sum(level != reference for level in run.plan) for run in joint]
        if len({run.plan for run in joint}) < len(joint) or min(low, default=2) < 2:
            raise UsageError(
                "every joint plan must be given once, and have at least two low steps: the "
                "reference and all single plans are recorded anyway"
            )
        # one seed of as many different prompts as possible
        every, samples = len(workload.seeds), len(workload.samples)
        self.replicated = np.arange(0, samples, every)[:REPLICATED_SAMPLES]
        self.pictured = np.arange(0, samples, every)[:PICTURED_SAMPLES]
        captured = capture == "trajectory"
        self.captured = frozenset((self.reference, *(self.singles if captured else ())))
        low_rank = {level for level in levels if "+lr" in level}
        self.denoisers = denoisers
        self._measured = {"metrics": dict(metrics)} if metrics else {}
        self.calibration = workload.samples[: CALIBRATION_SAMPLES if low_rank else 0]
        texts = [(prompt, workload.prompts[prompt], seed) for prompt, seed in self.calibration]
        self.specs: dict[str, Any] = {
            level: {**specs.get(level, {}), "calibration": texts}
            if level in low_rank
            else specs.get(level)
            for level in levels
        }
        self.key = workload.key(
            levels=[[level, self.specs[level]] for level in levels],
            runs=[str(plan) for plan in self.runs],
            capture=capture,
            jitter=REPLICATE_JITTER,
            replicated=self.replicated.tolist(),
            design=[(run.kind, run.held_out) for run in joint],
            **self._measured,
        )
        size = workload.max_batch
        self.chunks = [
            self._chunk(tuple(range(start, min(start + size, samples))))
            for start in range(0, samples, size)
        ]

    def _chunk(self, rows: tuple[int, ...]) -> tuple[Job, ...]:
        """The jobs of a chunk, its runs first."""

        def job(
            purpose: Purpose, rows: tuple[int, ...], plans: tuple[PrecisionPlan, ...], batch: int
        ) -> Job:
            keys = tuple(self._key(purpose, rows, batch, plan) for plan in plans)
            return Job(purpose, rows, batch, plans, keys)

        jobs = [job("run", rows, self.runs, len(rows))]
        # another batch size moves the last bits as anybody's rerun would: samples one by one, or
        # twice each where they run one by one anyway
        rerun, batch = (rows, 1) if len(rows) > 1 else (rows * 2, 2)
        jobs.append(job("floor", rerun, (self.reference,), batch))
        again = tuple(row for row in rows if row in self.replicated)
        if again:
            jobs.append(job("replicate", again, self.singles, len(again)))
        return tuple(jobs)

    def _key(self, purpose: Purpose, rows: tuple[int, ...], batch: int, plan: PrecisionPlan) -> str:
        """Of a cell: no other plan, and no sample outside its chunk, is part of it."""
        more: dict[str, Any] = {
            "purpose": purpose,
            "batch": batch,
            "plan": str(plan),
            "reference": self.levels[0],
            "levels": {level: self.specs.get(level) for level in {*plan, self.levels[0]}},
        }
        if purpose == "run":
            more["captured"] = plan in self.captured
            more["pictured"] = [row in self.pictured for row in rows]
            more |= self._measured
        if purpose == "replicate":
            more["jitter"] = REPLICATE_JITTER
        return self.workload.cell_key([self.workload.samples[row] for row in rows], **more)

    @property
    def keys(self) -> list[str]:
        """The keys of all cells."""
        return [key for chunk in self.chunks for job in chunk for key in job.keys]

    def nfe(self, per_step: Sequence[int]) -> dict[str, int]:
        """Network evaluations spent on all, and those of one call of the pipeline per run."""
        every = [job for chunk in self.chunks for job in chunk]
        calibration = self.calibration_nfe(per_step)
        runs = sum(len(job.plans) * len(job.rows) for job in every)
        return {
            "spent": sum(job.nfe(per_step, job.plans) for job in every) + calibration,
            "plain_loop": runs * sum(per_step) + calibration,
        }

    def calibration_nfe(self, per_step: Sequence[int]) -> int:
        """Network evaluations that calibration takes: a run as it is for each denoiser."""
        return sum(per_step) * len(self.calibration) * self.denoisers
