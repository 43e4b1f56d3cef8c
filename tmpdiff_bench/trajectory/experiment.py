"""Recording a model: weights, prompts, noise and plans by name, made into a workload."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from tmpdiff_bench.errors import UsageError, unknown
from tmpdiff_bench.levels import RESIDENCIES, Level, LevelBank
from tmpdiff_bench.pipelines import EMBEDDED, load_model
from tmpdiff_bench.prompts import prompt_source, take
from tmpdiff_bench.store import digest
from tmpdiff_bench.trajectory.jobs import JointRun
from tmpdiff_bench.trajectory.recorder import record
from tmpdiff_bench.trajectory.recording import Recording
from tmpdiff_bench.trajectory.workload import Workload


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
    prompt_set: str | None = None,
    store: Path | None = None,
    residency: str = "resident",
) -> Recording:
    """Record (or go on with, or reuse) the single runs of a model and `joint` runs in `folder`.

    `levels[0]` is the reference. `seed` is the first of `num_seeds` noise seeds. Of the file
    `prompts`, or of the calibration prompts of `prompt_set` (by default the three Scenes sets in
    turn), the first `num_prompts` are taken: by default all of a file, 16 of a set. `joint` is
    called after all other values have been checked. `capture`, `store`, `state_memory` and
    `residency` as in `record`. What the levels' weights will take is printed on stderr.

    Raises:
        UsageError: a value that can't be used, with the way out.
    """
    _check(levels, steps, num_seeds, guidance)
    if residency not in RESIDENCIES:
        raise unknown("residency", residency, RESIDENCIES)
    source = prompt_source(prompt_set, prompts)
    found = source.load()
    count = source.default_count if num_prompts is None else num_prompts
    chosen = take(found, "calibration", count)
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
        dataset=found.name,
        device=device,
        capture=capture,
        store=store,
        state_memory=state_memory,
        residency=residency,
        level_specs={name: asdict(Level.parse(name)) for name in levels},
        about={
            "prompt_set": {"name": found.name, "split": "calibration", **found.origin},
            "prompts_digest": digest(texts),
            "long_prompts": cut,
        },
    )


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
