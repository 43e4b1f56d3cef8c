"""Recording a model: weights, prompts, noise and plans by name, made into a workload."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from tmpdiff_bench.errors import UsageError, unknown
from tmpdiff_bench.levels import RESIDENCIES, Level, LevelBank
from tmpdiff_bench.levels.devices import check_device_runs
from tmpdiff_bench.pipelines import DTYPES, EMBEDDED, check_device, load_model
from tmpdiff_bench.prompts import prompt_source, take
from tmpdiff_bench.prompts.base import Prompts
from tmpdiff_bench.store import digest
from tmpdiff_bench.trajectory.jobs import Jobs, JointRun
from tmpdiff_bench.trajectory.measures import DEFAULT, chosen_metrics
from tmpdiff_bench.trajectory.recorder import record
from tmpdiff_bench.trajectory.recording import Recording
from tmpdiff_bench.trajectory.workload import Workload
from tmpdiff_bench.zoo.captions import Requirement


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
    dtype: str = "fp32",
    vae_tile: int | None = None,
    max_batch: int,
    state_memory: int,
    capture: str = "terminal",
    prompts: Path | None = None,
    prompt_set: str | None = None,
    store: Path | None = None,
    residency: str = "resident",
    metrics: Sequence[str] = DEFAULT,
) -> Recording:
    """Record (or go on with, or reuse) the single runs of a model and `joint` runs in `folder`.

    `levels[0]` is the reference. `seed` is the first of `num_seeds` noise seeds. Of the file
    `prompts`, or of the calibration prompts of `prompt_set` (by default the three Scenes sets in
    turn), the first `num_prompts` are taken: by default all of a file, 16 of a set. `joint` is
    called after all other values have been checked. `capture`, `store`, `state_memory`, `residency`
    and `metrics` as in `record`; `device`, `dtype` and `vae_tile` as in `load_model`, in stages:
    text encoders run first and are freed. What weights will take is printed on stderr before it is
    taken, and which metrics can't be had.

    Raises:
        UsageError: a value that can't be used, with the way out.
    """
    _check(levels, steps, num_seeds, guidance, dtype, device, metrics)
    if residency not in RESIDENCIES:
        raise unknown("residency", residency, RESIDENCIES)
    found, chosen = _prompts(prompt_set, prompts, num_prompts)
    loaded = load_model(
        model,
        weights=weights,
        revision=revision,
        device=device,
        dtype=dtype,
        staged=True,
        vae_tile=vae_tile,
        announce=lambda sizes: print(f"{model} ({weights}) in {dtype}: {sizes}", file=sys.stderr),
    )
    pipeline = loaded.stepwise(steps=steps, guidance=guidance)
    texts = dict(zip(chosen["prompt_id"], chosen["text"], strict=True))
    if cut := pipeline.truncated(list(texts.values())):
        warnings.warn(f"{len(cut)} prompts are longer than the tokenizer takes", stacklevel=2)

    def make_room() -> None:
        pipeline.free_text_encoders()
        takes = LevelBank.memory(pipeline.denoiser, levels, pipeline.quantized, residency)
        tqdm.write(str(takes), file=sys.stderr)  # the bar of the recording is there already

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
        vae_tile=vae_tile,
    )
    recording = record(
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
        metrics=metrics,
        requirements=_requirements(chosen),
        on_encoded=make_room,
    )
    for name, about in recording.manifest.get("metrics", {}).items():
        if about["not_available"]:
            print(f"{name}: {about['not_available']}", file=sys.stderr)
    return recording


def model_nfe(
    model: str,
    *,
    joint: Callable[[], Sequence[JointRun]],
    levels: tuple[str, ...],
    steps: int,
    num_prompts: int | None,
    num_seeds: int,
    guidance: float,
    max_batch: int,
    prompts: Path | None = None,
    prompt_set: str | None = None,
    weights: str = EMBEDDED,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str = "fp32",
    metrics: Sequence[str] = DEFAULT,
    **_settings: Any,
) -> int:
    """Network evaluations that `record_model` with these arguments takes in all, were nothing in a
    store. The network itself is not loaded. Raises `UsageError` as `record_model`.
    """
    _check(levels, steps, num_seeds, guidance, dtype, device, metrics)
    _, chosen = _prompts(prompt_set, prompts, num_prompts)
    loaded = load_model(model, weights=weights, revision=revision, staged=True)
    pipeline = loaded.stepwise(steps=steps, guidance=guidance)
    workload = Workload(
        model=model,
        weights=weights,
        weights_digest=loaded.digest,
        sampler={},
        steps=steps,
        guidance=guidance,
        resolution=pipeline.resolution,
        prompts=dict.fromkeys(chosen["prompt_id"], ""),
        seeds=tuple(range(num_seeds)),
        dtype="",
        max_batch=max_batch,
    )
    return Jobs(workload, levels, tuple(joint()), "terminal", {}).nfe(pipeline)["spent"]


def _prompts(
    prompt_set: str | None, file: Path | None, count: int | None
) -> tuple[Prompts, pd.DataFrame]:
    """The set, and those of its calibration prompts that are taken."""
    source = prompt_source(prompt_set, file)
    found = source.load()
    wanted = source.default_count if count is None else count
    return found, take(found, "calibration", wanted)


def _requirements(prompts: pd.DataFrame) -> dict[str, Requirement] | None:
    """What prompts ask for, by id; None where only their texts are known."""
    if "requirement" not in prompts:
        return None
    texts = zip(prompts["prompt_id"], prompts["requirement"], strict=True)
    return {prompt: Requirement.from_json(text) for prompt, text in texts}


def _check(
    levels: tuple[str, ...],
    steps: int,
    num_seeds: int,
    guidance: float,
    dtype: str,
    device: str,
    metrics: Sequence[str],
) -> None:
    """Raise `UsageError` for what can be seen without weights."""
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    for name in levels:
        Level.parse(name)
    if dtype != "fp32" and "fp32" in levels:
        raise UsageError(
            f"--dtype {dtype} leaves no fp32 to compare with: name {dtype} in its place in "
            "--levels, or load with --dtype fp32"
        )
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
    chosen_metrics(metrics)
    check_device_runs(levels, check_device(device))


def _plain(config: Mapping[str, object]) -> dict[str, object]:
    """The public part of a diffusers config as JSON: infinities (DPM-Solver's) become text."""
    return {
        k: str(v) if isinstance(v, float) and not math.isfinite(v) else v
        for k, v in config.items()
        if not k.startswith("_") and isinstance(v, str | int | float | bool | None)
    }
