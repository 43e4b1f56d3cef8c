"""Recording a model: weights, prompts, noise and plans by name, made into a workload."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from tmpdiff_bench.errors import UsageError, unknown
from tmpdiff_bench.levels import RESIDENCIES, Level, LevelBank
from tmpdiff_bench.pipelines import EMBEDDED, load_model
from tmpdiff_bench.store import digest
from tmpdiff_bench.trajectory.jobs import JointRun
from tmpdiff_bench.trajectory.recorder import record
from tmpdiff_bench.trajectory.recording import Recording
from tmpdiff_bench.trajectory.workload import Workload
from tmpdiff_bench.zoo.prompts import mixed_prompts, read_prompts


def record_model(
    model: str,
    *,
    folder: Path,
    joint: Callable[[], Sequence[JointRun]],
    weights: str = EMBEDDED,
    revision: str | None = None,
    levels: tuple[str, ...],
    steps: int,
    num_prompts: int | None,
    num_seeds: int,
    guidance: float,
    seed: int,
    device: str,
    max_batch: int,
    state_memory: int,
    capture: str = "terminal",
    prompts: Path | None = None,
    store: Path | None = None,
    residency: str = "resident",
) -> Recording:
    """Record (or go on with, or reuse) the single runs of a model and `joint` runs in `folder`.

    `levels[0]` is the reference. `seed` is the first of `num_seeds` noise seeds. Without a
    file `prompts`, calibration prompts of the three Scenes sets are used in turn; the first
    `num_prompts` are taken, or all of a file. `joint` is called after all other values
    have been checked. `capture`, `store`, `state_memory` and `residency` as in `record`. What the
    levels' weights will take is printed on stderr.

    Raises:
        UsageError: a value that can't be used, with the way out.
    """
    _check(levels, steps, num_seeds, guidance)
    if residency not in RESIDENCIES:
        raise unknown("residency", residency, RESIDENCIES)
    chosen = _prompts(prompts, num_prompts)
    loaded = load_model(model, weights=weights, revision=revision, device=device)
    pipeline = loaded.stepwise(steps=steps, guidance=guidance)
    texts = dict(zip(chosen["prompt_id"], chosen["text"], strict=True))
    if cut := pipeline.truncated(list(texts.values())):
        warnings.warn(f"{len(cut)} prompts are longer than the tokenizer takes", stacklevel=2)
    takes = LevelBank.memory(pipeline.denoiser, levels, pipeline.quantized, residency)
    print(takes, file=sys.stderr)
    scheduler = loaded.pipeline.scheduler
    workload = Workload(
        model=model,
        weights=weights if revision is None else f"{weights}@{revision}",
        weights_digest=loaded.digest,
        sampler={"class": type(scheduler).__name__, **_plain(scheduler.config)},
        steps=steps,
        guidance=guidance,
        resolution=pipeline.resolution,
        prompts=texts,
        seeds=tuple(range(seed, seed + num_seeds)),
        dtype=str(next(pipeline.denoiser.parameters()).dtype).removeprefix("torch."),
        max_batch=max_batch,
    )
    return record(
        pipeline,
        workload,
        levels,
        joint(),
        folder,
        title=loaded.title,
        dataset="scenes" if prompts is None else prompts.stem,
        device=device,
        capture=capture,
        store=store,
        state_memory=state_memory,
        residency=residency,
        level_specs={name: asdict(Level.parse(name)) for name in levels},
        about={
            "prompts_digest": digest(texts),
            "long_prompts": cut,
        },
    )


def _prompts(path: Path | None, count: int | None) -> pd.DataFrame:
    if path is None:
        return mixed_prompts(16 if count is None else count, "calibration")
    found = read_prompts(path)
    if count is not None and count > len(found):
        raise UsageError(f"--num-prompts {count}: {path} holds {len(found)}")
    return found.head(count) if count is not None else found


def _check(levels: tuple[str, ...], steps: int, num_seeds: int, guidance: float) -> None:
    for name in levels:
        Level.parse(name)
    if len(levels) < 2:
        raise UsageError("--levels takes the reference and at least one low level")
    if len(set(levels)) != len(levels):
        raise UsageError(f"a level is named twice in {','.join(levels)}")
    if num_seeds < 1:
        raise UsageError(f"--num-seeds is {num_seeds}: at least 1 is needed")
    if steps < 1:
        raise UsageError(f"--steps is {steps}: at least 1 is needed")
    if not math.isfinite(guidance):
        raise UsageError(f"--guidance is {guidance}: a finite number is needed")


def _plain(config: Mapping[str, object]) -> dict[str, object]:
    """The public part of a diffusers config as JSON: infinities (DPM-Solver's) become text."""
    return {
        k: str(v) if isinstance(v, float) and not math.isfinite(v) else v
        for k, v in config.items()
        if not k.startswith("_") and isinstance(v, str | int | float | bool | None)
    }
