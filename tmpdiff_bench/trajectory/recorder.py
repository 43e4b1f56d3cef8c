"""Recording a workload: reference, single and joint runs, chunk by chunk of its samples.

All runs of a chunk are one tree of batches, and last bits depend on how states are batched: so the
chunk is what is stored as a cell. Killed at any moment, the same call goes on after the last cell
and ends with the same recording.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from tmpdiff_bench.errors import UsageError, unknown
from tmpdiff_bench.levels import LevelBank
from tmpdiff_bench.metrics import IMAGE_METRICS, LATENT_METRICS
from tmpdiff_bench.noise import initial_noise, keyed_noise
from tmpdiff_bench.pipelines import Conditioning, StepwisePipeline
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.store import CellStore, clear_leftovers
from tmpdiff_bench.trajectory.engine import NonFiniteLatentsError, PrefixEngine
from tmpdiff_bench.trajectory.recording import Recording
from tmpdiff_bench.trajectory.tree import nodes_per_step
from tmpdiff_bench.trajectory.workload import Workload, environment

REPLICATED_SAMPLES = 4
PICTURED_SAMPLES = 4
CALIBRATION_SAMPLES = 4
# relative size of the jitter that makes a replicate: a few float32 ulps, as another batch would
REPLICATE_JITTER = 1e-6
_FAILED = "failed"  # in a cell: the message instead of arrays
CAPTURES = ("terminal", "trajectory")
_METRICS = (*LATENT_METRICS, *IMAGE_METRICS)


@dataclass(frozen=True)
class JointRun:
    """A joint plan with its label in the design and whether predictors may be fitted on it."""

    plan: PrecisionPlan
    kind: str
    held_out: bool


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
    residency: str = "resident",
    about: Mapping[str, Any] | None = None,
) -> Recording:
    """Record `workload` into `folder`, or go on with, or reuse, the recording that is there.

    `levels[0]` is the reference. The table's image metrics compare decoded images. `capture`:
    "terminal" keeps the latents of the reference at every step and the final ones of all other
    runs; "trajectory" those of single runs at every step as well. Levels with a low-rank branch are
    calibrated by the reference's run of the first samples. `residency` as in `LevelBank`. Finished
    cells are kept in `store`, where other recordings find them; without one, in `folder` until it
    is whole. `about` is added to the manifest.

    Raises:
        UsageError: `folder` or `store` is a file, `folder` holds another workload's recording, a
            joint plan is given twice or has fewer than two low steps, or a level or capture is
            unknown.
        NonFiniteLatentsError: a run diverged. All other cells are stored, that one as failed.
    """
    if capture not in CAPTURES:
        raise unknown("capture", capture, CAPTURES)
    for path in filter(None, (folder, store)):
        if path.exists() and not path.is_dir():
            raise UsageError(f"{path} is a file: name a folder")
    recorder = _Recorder(pipeline, workload, tuple(levels), tuple(joint), capture, residency)
    if (folder / "manifest.json").exists():
        found = Recording.open(folder)
        if found.manifest.get("key") != recorder.key:
            raise UsageError(
                f"{folder} holds a recording of other settings; name another folder with --out"
            )
        recorder.clear(folder, store)
        return found
    started = time.perf_counter()
    cells = CellStore(store or folder / "cells")
    chunks = recorder.run(cells)
    manifest: dict[str, Any] = {
        "key": recorder.key,
        "title": title,
        "dataset": dataset,
        "workload": {**vars(workload), "seeds": list(workload.seeds)},
        "environment": environment(device),
        "capture": capture,
        "noise_digest": recorder.noise_digest(),
        "numerical_floor": float(np.mean(np.concatenate([c["floor"] for c in chunks]))),
        # `computed` in these seconds; the rest was in the store
        "nfe": {**recorder.nfe(), "computed": recorder.computed},
        "seconds": round(time.perf_counter() - started, 1),
        **(about or {}),
    }
    recording = recorder.assemble(chunks, manifest, title, dataset).save(folder)
    recorder.clear(folder, store)
    return recording


class _Recorder:
    """One recording in the making; shapes as in `Recording`, with c samples a chunk."""

    def __init__(
        self,
        pipeline: StepwisePipeline,
        workload: Workload,
        levels: tuple[str, ...],
        joint: tuple[JointRun, ...],
        capture: str,
        residency: str,
    ) -> None:
        self.pipeline, self.workload, self.levels, self.joint = pipeline, workload, levels, joint
        self.residency = residency
        reference, steps = levels[0], workload.steps
        self.reference = PrecisionPlan.uniform(reference, steps)
        self.singles = [
            PrecisionPlan.single(reference, level, step, steps)
            for level in levels[1:]
            for step in range(steps)
        ]
        self.runs = [self.reference, *self.singles, *(run.plan for run in joint)]
        self.rows = [
            np.arange(start, min(start + workload.chunk, len(workload.samples)))
            for start in range(0, len(workload.samples), workload.chunk)
        ]
        # one seed of as many different prompts as possible
        every = len(workload.seeds)
        self.replicated = np.arange(0, len(workload.samples), every)[:REPLICATED_SAMPLES]
        self.pictured = np.arange(0, len(workload.samples), every)[:PICTURED_SAMPLES]
        self.captured = (
            self.runs[: 1 + len(self.singles)] if capture == "trajectory" else [self.reference]
        )
        self._more: dict[str, Any] = {
            "levels": levels,
            "runs": [str(plan) for plan in self.runs],
            "jitter": REPLICATE_JITTER,
            "capture": capture,
        }
        calibrated = any("+lr" in level for level in levels)
        self.calibration = workload.samples[: CALIBRATION_SAMPLES if calibrated else 0]
        if self.calibration:
            self._more["calibration"] = [
                (prompt, workload.prompts[prompt], seed) for prompt, seed in self.calibration
            ]
        self.cell_keys = [self._cell_key(rows) for rows in self.rows]
        self.key = workload.key(
            **self._more,
            replicated=self.replicated.tolist(),
            design=[(run.kind, run.held_out) for run in joint],
        )
        self.computed = 0
        low = [sum(level != reference for level in run.plan) for run in joint]
        if len({run.plan for run in joint}) < len(joint) or min(low, default=2) < 2:
            raise UsageError(
                "every joint plan must be given once, and have at least two low steps: the "
                "reference and all single plans are recorded anyway"
            )

    def nfe(self) -> dict[str, int]:
        """Network evaluations spent in all, and those of one loop per run."""
        samples, replicas = len(self.workload.samples), len(self.replicated)
        per_step = np.array([self.pipeline.nfe(step) for step in range(self.workload.steps)])
        tree, again = nodes_per_step(self.runs), nodes_per_step(self.singles or [self.reference])
        calibration = len(self.calibration)
        spent = (np.array(tree) + 1) * samples + np.array(again) * replicas + calibration
        plain = (len(self.runs) + 1) * samples + len(self.singles) * replicas + calibration
        return {"spent": int(spent @ per_step), "plain_loop": int(plain * per_step.sum())}

    def _cell_key(self, rows: NDArray[np.int64]) -> str:
        chosen = {
            "replicated": np.isin(rows, self.replicated).tolist(),
            "pictured": np.isin(rows, self.pictured).tolist(),
        }
        return self.workload.cell_key(
            [self.workload.samples[i] for i in rows], **self._more, **chosen
        )

    def run(self, store: CellStore) -> list[dict[str, NDArray[Any]]]:
        """All chunks, from the store where they are there."""
        total = self.nfe()["spent"]
        chunks: list[dict[str, NDArray[Any]]] = []
        with tqdm(
            total=total, desc="recording", unit="NFE", unit_scale=True, smoothing=0.05
        ) as bar:

            def advance(nfe: int) -> None:
                self.computed += nfe
                bar.update(nfe)

            bank, conditioning, failures = None, None, list[str]()
            for rows, key in zip(self.rows, self.cell_keys, strict=True):
                chunk = store.get(key)
                if chunk is None:
                    if bank is None or conditioning is None:
                        conditioning = self._encode()
                        bank = self._bank(conditioning, advance)
                    try:
                        chunk = self._chunk(rows, bank, conditioning[rows.tolist()], advance)
                    except NonFiniteLatentsError as error:
                        named = (self.workload.samples[i] for i in rows)
                        among = ", ".join(f"{prompt} seed {seed}" for prompt, seed in named)
                        text = f"{error} (among {among})"
                        chunk = {_FAILED: np.frombuffer(text.encode(), dtype=np.uint8)}
                    store.put(key, chunk)
                else:
                    bar.update(math.ceil(total * len(rows) / len(self.workload.samples)))
                if _FAILED in chunk:
                    failures.append(chunk[_FAILED].tobytes().decode())
                chunks.append(chunk)
        if failures:
            raise NonFiniteLatentsError("; ".join(failures))
        return chunks

    def _bank(self, conditioning: Conditioning, on_nfe: Callable[[int], None]) -> LevelBank:
        """All levels; those that need it calibrated by the reference's run of some samples."""
        count, pipeline = len(self.calibration), self.pipeline

        def calibrate() -> None:
            noise = initial_noise(self.calibration, pipeline.latent_shape)
            state, rows = pipeline.initial_state(noise), conditioning[list(range(count))]
            for step in range(pipeline.steps):
                state = pipeline.step(state, step, pipeline.denoiser, rows)
                on_nfe(count * pipeline.nfe(step))

        return LevelBank(
            pipeline.denoiser, self.levels, pipeline.quantized, calibrate, self.residency
        )

    def clear(self, folder: Path, store: Path | None) -> None:
        """Remove what a whole recording needs no more. Another process at the same work goes on: it
        has what it needs in memory.
        """
        if store is None:
            CellStore(folder / "cells").discard(self.cell_keys)
        clear_leftovers(folder)

    def noise_digest(self) -> str:
        """sha256 of the initial noise of all samples."""
        noise = initial_noise(self.workload.samples, self.pipeline.latent_shape)
        return hashlib.sha256(noise.numpy().tobytes()).hexdigest()

    def _encode(self) -> Conditioning:
        """Conditioning of every sample; each prompt is encoded alone, so that its numbers do not
        depend on the others.
        """
        texts = list(self.workload.prompts.values())
        encoded = [self.pipeline.encode([text]) for text in texts]
        each = [c for c in encoded for _ in self.workload.seeds]
        return Conditioning(
            {k: torch.cat([c.positive[k] for c in each]) for k in each[0].positive},
            {k: torch.cat([c.negative[k] for c in each]) for k in each[0].negative},
        )

    def _chunk(
        self,
        rows: NDArray[np.int64],
        bank: LevelBank,
        conditioning: Conditioning,
        on_nfe: Callable[[int], None],
    ) -> dict[str, NDArray[Any]]:
        samples = [self.workload.samples[i] for i in rows]
        noise = initial_noise(samples, self.pipeline.latent_shape)

        def engine(mine: list[int], **options: Any) -> PrefixEngine:
            limits = {
                "max_batch": self.workload.max_batch,
                "state_memory": self.workload.state_memory,
            }
            return PrefixEngine(
                self.pipeline,
                bank,
                conditioning[mine],
                noise[mine],
                on_nfe=on_nfe,
                **{**limits, **options},
            )

        everyone = list(range(len(rows)))
        others = self.runs[len(self.captured) :]
        along, finals = engine(everyone).trajectories(self.captured, others)
        # one by one: the last bits move as they would in anybody's rerun at another batch size
        other = 1 if self.workload.max_batch > 1 else 2
        again = engine(everyone, max_batch=other).evaluate([self.reference])
        replicated = [i for i in everyone if rows[i] in self.replicated]
        chunk = {
            "finals": finals,
            "along": along,
            "floor": LATENT_METRICS["latent_rmse"](again[0], finals[0]),
        }
        if replicated and self.singles:
            keys = [samples[i] for i in replicated]
            jittered = engine(replicated, perturb=_jitter(keys, self.levels[0]))
            chunk["replicates"] = jittered.evaluate(self.singles)
        chunk["metrics"], pictures = self._measure(finals)
        chunk["pictures"] = pictures[:, [i for i in everyone if rows[i] in self.pictured]]
        return {name: value.numpy() for name, value in chunk.items()}

    def _measure(self, finals: Tensor) -> tuple[Tensor, Tensor]:
        """Metric values (runs, metrics, c) float64 against run 0, and 8-bit images
        (runs, c, H, W, 3).
        """
        device = next(self.pipeline.denoiser.parameters())
        values, pictures = [], []
        reference = images = self.pipeline.decode(finals[0].to(device)).cpu()
        for i, final in enumerate(finals):
            if i:
                images = self.pipeline.decode(final.to(device)).cpu()
            latent = [metric(final, finals[0]) for metric in LATENT_METRICS.values()]
            image = [metric(images, reference) for metric in IMAGE_METRICS.values()]
            values.append(torch.stack(latent + image).double())
            pictures.append((images * 255).round().to(torch.uint8).permute(0, 2, 3, 1))
        return torch.stack(values), torch.stack(pictures)

    def assemble(
        self,
        chunks: Sequence[dict[str, NDArray[Any]]],
        manifest: dict[str, Any],
        title: str,
        dataset: str,
    ) -> Recording:
        """The recording of all chunks."""
        finals = np.concatenate([c["finals"] for c in chunks], axis=1)
        finals = finals.reshape(*finals.shape[:2], -1)
        along = np.concatenate([c["along"] for c in chunks], axis=2)
        along = along.reshape(*along.shape[:3], -1)
        reference, cells = finals[0], (len(self.levels) - 1, self.workload.steps)
        paths = None
        if len(along) > 1:
            paths = (along[1:] - along[0]).reshape(*cells, *along.shape[1:])
        replicates = None
        if parts := [c["replicates"] for c in chunks if "replicates" in c]:
            joined = np.concatenate(parts, axis=1)
            joined = joined.reshape(*joined.shape[:2], -1) - reference[self.replicated]
            replicates = joined.reshape(*cells, *joined.shape[1:])
        pictures = np.concatenate([c["pictures"] for c in chunks], axis=1)
        singles = 1 + len(self.singles)
        deviations = finals[1:singles] - reference
        return Recording(
            levels=self.levels,
            steps=self.workload.steps,
            samples=self.workload.samples,
            prompts=self.workload.prompts,
            reference=reference,
            singles=deviations.reshape(*cells, *deviations.shape[1:]),
            replicates=replicates,
            replicate_rows=self.replicated,
            plans=tuple(run.plan for run in self.joint),
            kinds=tuple(run.kind for run in self.joint),
            held_out=np.array([run.held_out for run in self.joint], dtype=np.bool_),
            joint=finals[singles:] - reference,
            floor=np.concatenate([c["floor"] for c in chunks]).astype(np.float32),
            table=self._table(
                np.concatenate([c["metrics"] for c in chunks], axis=2), title, dataset
            ),
            pictures={
                "reference" if i == 0 else str(plan): pictures[i]
                for i, plan in enumerate(self.runs)
            },
            picture_rows=self.pictured,
            manifest=manifest,
            reference_path=along[0],
            single_paths=paths,
        )

    def _table(self, metrics: NDArray[np.float64], title: str, dataset: str) -> pd.DataFrame:
        """One row per (run, metric, sample), runs other than the reference."""
        runs, kinds = self.runs[1:], ["single"] * len(self.singles) + ["joint"] * len(self.joint)
        samples = self.workload.samples
        per_run = len(_METRICS) * len(samples)
        return pd.DataFrame(
            {
                "model": title,
                "dataset": dataset,
                "plan": np.repeat([str(plan) for plan in runs], per_run),
                "kind": np.repeat(kinds, per_run),
                "prompt_id": np.tile([p for p, _ in samples], len(runs) * len(_METRICS)),
                "seed": np.tile([s for _, s in samples], len(runs) * len(_METRICS)),
                "metric": np.tile(np.repeat(_METRICS, len(samples)), len(runs)),
                "value": metrics[1:].ravel(),
            }
        )


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
