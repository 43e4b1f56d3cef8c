"""What is run: every default, and its help. Commands make their options from these fields."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tmpdiff_bench.errors import UsageError, check_known
from tmpdiff_bench.plan import PrecisionPlan

EMBEDDED = "embedded"
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
CAPTURES = ("terminal", "trajectory")
RESIDENCIES = ("resident", "offload", "derive")
LEVELS = ("fp32", "w8a8", "w4a8", "w4a4")
METRICS = ("latent_rmse", "latent_mse", "image_rmse", "one_minus_ssim")


def _setting(default: Any, text: str, **more: Any) -> Any:
    """A field with its help; `more` says how the command line reads it."""
    made = {"default_factory": default} if isinstance(default, type) else {"default": default}
    return field(**made, metadata={"help": text, **more})


@dataclass(frozen=True)
class Experiment:
    """A model, its levels, prompts and seeds, and how its pipeline is called.

    >>> Experiment("sd3", steps=8).levels
    ('fp32', 'w8a8', 'w4a8', 'w4a4')
    >>> Experiment("sd3", steps=0)
    Traceback (most recent call last):
    tmpdiff_bench.errors.UsageError: --steps is 0: at least 1 is needed

    Raises:
        UsageError: a value that can't be used, as far as can be told without loading anything.
    """

    model: str | None = _setting(
        None, "an embedded model: sd3, flux, pixart or sdxl; your own --weights need none"
    )
    weights: Any = _setting(
        EMBEDDED,
        "'embedded', a folder that diffusers saved, a .safetensors file, or a hub id; in Python "
        "also a pipeline",
    )
    revision: str | None = _setting(None, "branch, tag or commit of a hub id")
    variant: str | None = _setting(None, "variant of the weights' files, such as fp16")
    levels: tuple[str, ...] = _setting(
        LEVELS, "the reference and the low levels; the reference is the dtype unless it is named"
    )
    modules: Mapping[str, Any] = _setting(
        dict,
        "a level of your own: a folder that diffusers saved, quantized or not, or a .gguf file, of "
        "the denoiser; may be given many times; in Python also a module",
        option="--level",
        metavar="NAME=PATH",
    )
    steps: int = _setting(20, "denoising steps")
    prompts: Any = _setting(
        None,
        "your own prompts: .txt (one a line), .csv, .tsv, .jsonl or .parquet, whose other columns "
        "are call arguments; in Python also texts or a table",
    )
    prompt_set: str | None = _setting(
        None,
        "scenes, scenes-attributes, scenes-relations, scenes-counts, mjhq, sdci, coco, "
        "partiprompts or drawbench, the last five from the hub or its cache (default: scenes, the "
        "three in turn)",
    )
    num_prompts: int | None = _setting(None, "prompts (default: 16, or all of --prompts)")
    num_seeds: int = _setting(2, "noise seeds of each prompt")
    seed: int = _setting(0, "first noise seed, also that of the choice of joint plans")
    call: Mapping[str, Any] = _setting(
        dict,
        "an argument of the pipeline's call, such as guidance_scale=3.5 or height=1024; may be "
        "given many times (default: the pipeline's own)",
        metavar="NAME=VALUE",
    )
    scheduler: str | None = _setting(
        None,
        "another scheduler, with settings: EulerDiscreteScheduler:use_karras_sigmas=true",
        metavar="CLASS[:KEY=VALUE,...]",
    )
    lora: str | None = _setting(
        None, "a LoRA's .safetensors file, and its scale", metavar="FILE[:SCALE]"
    )
    quantized: tuple[str, ...] | None = _setting(
        None, "names of the layers that levels change (default: by rule, those in blocks)"
    )
    metrics: tuple[str, ...] = _setting(
        METRICS,
        "measured for every run, such as lpips-scenes,psnr,scene_objects; the latent two always",
    )
    device: str = _setting("cpu", "where the model runs, such as cpu or cuda")
    dtype: str = _setting("fp32", "of weights and arithmetic: fp32, bf16 or fp16")
    vae_tile: int | None = _setting(None, "decode images in tiles of so many pixels a side")
    max_batch: int = _setting(16, "samples in one pass of the network, at most")
    residency: str = _setting(
        "resident",
        "weights of levels not in use: resident in memory, offload (to the CPU, or to files), or "
        "derive (rounded again at every switch)",
    )
    state_memory: int = _setting(2**30, "MiB of steps held, at most", unit=2**20)
    capture: str = _setting(
        "terminal",
        "of single runs, keep the terminal latents, or the trajectory: those after every step",
    )
    joint_plans: int = _setting(
        12, "joint plans of each low level, of a design; 0 leaves single runs, and --plan"
    )
    plans: tuple[PrecisionPlan, ...] = _setting(
        (),
        'a joint plan besides, such as "fp32*3 w4a4*17"; may be given many times',
        option="--plan",
    )

    def __post_init__(self) -> None:
        if self.dtype == "fp32" and not isinstance(self.weights, str | Path):  # a pipeline's own
            from tmpdiff_bench.pipelines.loading import dtype_name

            object.__setattr__(self, "dtype", dtype_name(self.weights))
        check_known("dtype", self.dtype, DTYPES)
        check_known("capture", self.capture, CAPTURES)
        check_known("residency", self.residency, RESIDENCIES)
        if self.levels is LEVELS:  # not named: the reference is what the model is in
            low = tuple(self.modules) or LEVELS[1:]
            object.__setattr__(self, "levels", (self.dtype, *low))
        for name in ("levels", "metrics", "quantized"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        plans = [p if isinstance(p, PrecisionPlan) else PrecisionPlan.parse(p) for p in self.plans]
        object.__setattr__(self, "plans", tuple(dict.fromkeys(plans)))
        if self.model is None and isinstance(self.weights, str) and self.weights == EMBEDDED:
            raise UsageError("name a model by --model, or weights by --weights")
        self._check_levels()
        for name in ("steps", "num_prompts", "num_seeds", "max_batch", "vae_tile", "state_memory"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{option_of(name)} is {value}: at least 1 is needed")
        if self.joint_plans < 0:
            raise UsageError(f"--joint-plans is {self.joint_plans}: at least 0 are needed")
        if not 0 <= self.seed < 2**32 - self.num_seeds:
            raise UsageError(f"--seed is {self.seed}: 0 to 2^32 - 1 are taken, with --num-seeds")
        if self.quantized is not None and not self.quantized:
            raise UsageError("--quantized names no layers: leave it out for those of the rule")
        if self.prompts is not None and self.prompt_set is not None:
            raise UsageError("--prompt-set and --prompts exclude one another: give one of them")
        for name, value in self.call.items():
            if not re.fullmatch(r"[A-Za-z_]\w*", name):
                raise UsageError(f"--call {name!r} is not the name of an argument")
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageError(f"--call {name} is {value}: a finite number is needed")

    def _check_levels(self) -> None:
        from tmpdiff_bench.levels.level import Level  # levels import torch

        for name in self.levels:
            if name not in self.modules:
                Level.parse(name)
        check_own_names(self.modules)
        if strange := next((name for name in self.modules if name not in self.levels), None):
            raise UsageError(
                f"--level {strange}=... is not among --levels {','.join(self.levels)}: name it "
                "there, or leave one of them out"
            )
        if self.quantized is not None and not {*self.levels[1:]} - {*self.modules}:
            raise UsageError(
                "--quantized has no effect: levels of your own change what they are made of"
            )
        if len(self.levels) < 2:
            raise UsageError("--levels takes the reference and at least one low level")
        if len(set(self.levels)) != len(self.levels):
            raise UsageError(f"a level is named twice in {','.join(self.levels)}")
        if self.dtype != "fp32" and "fp32" in self.levels:
            raise UsageError(
                f"--dtype {self.dtype} leaves no fp32 to compare with: name {self.dtype} in its "
                "place in --levels, or load with --dtype fp32"
            )
        for plan in self.plans:
            if len(plan) != self.steps:
                raise UsageError(
                    f"--plan {plan} has {len(plan)} steps, the experiment {self.steps}"
                )
            if strange := next((level for level in plan if level not in self.levels), None):
                raise UsageError(f"--plan {plan} uses {strange}, which is not among the --levels")


def check_own_names(names: Iterable[str]) -> None:
    """Raise `UsageError` for a name that a level of one's own can't have."""
    from tmpdiff_bench.levels.level import Level

    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][\w.+-]*", name):
            raise UsageError(
                f"{name!r} can't name a level of your own: letters, digits, '.', '+', '-' and '_', "
                "a letter first"
            )
        try:
            Level.parse(name)
        except UsageError:
            continue
        raise UsageError(f"{name} is a level already: name yours otherwise")


def option_of(name: str) -> str:
    """The command line's option for a field of an experiment."""
    found = {f.name: f.metadata.get("option") for f in fields(Experiment)}[name]
    return found or f"--{name.replace('_', '-')}"
