"""What a user changes of a pipeline that is loaded: its scheduler, a LoRA, tiles of its VAE."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffusers
from diffusers import SchedulerMixin

from tmpdiff_bench.errors import UsageError, check_known, first_line, unknown
from tmpdiff_bench.pipelines.digests import file_digest

_LORA = "lora"  # the name that the adapter gets in the pipeline


def scheduler_choice(text: str) -> Callable[[Any], Any]:
    """What makes the scheduler `CLASS[:key=value,...]` of a pipeline's own, whose other settings it
    keeps. Values are JSON, else text.

    Raises:
        UsageError: the class is no scheduler of diffusers, lacks what it needs, or a setting is
            unknown. What it returns raises it for settings that the class refuses.
    """
    name, _, rest = text.partition(":")
    known = [other for other in dir(diffusers) if other.endswith("Scheduler")]
    kind: Any = getattr(diffusers, name, None) if name in known else None
    absent = [package for package in getattr(kind, "_backends", ()) if not find_spec(package)]
    if absent:  # what stands in its place says so
        raise UsageError(f"scheduler {name} needs packages that are not here: {', '.join(absent)}")
    if kind is None or not issubclass(kind, SchedulerMixin):
        raise unknown("scheduler", name, known)
    taken = set(inspect.signature(kind).parameters) - {"kwargs"}
    settings: dict[str, Any] = {}
    for item in re.split(r",(?=\w+=)", rest) if rest else ():
        key, equals, value = item.partition("=")
        if not equals:
            raise UsageError(f"scheduler setting {item!r} has no value: write key=value")
        check_known(f"setting of {name}", key, taken)
        settings[key] = _json_or_text(value)

    def make(own: Any) -> Any:
        try:
            return kind.from_config(own.config, **settings)
        except (ValueError, TypeError, NotImplementedError, AttributeError) as error:
            raise UsageError(f"scheduler {text} can't be made: {first_line(error)}") from error

    return make


@dataclass(frozen=True)
class Lora:
    """A LoRA file and the scale that it is applied with."""

    path: Path
    scale: float

    @classmethod
    def parse(cls, text: str) -> Lora:
        """Of `FILE[:scale]`. Raises `UsageError` where it is no safetensors file."""
        path, scale = Path(text), 1.0
        told = re.fullmatch(r"(.+):([-+]?[\d.]+(?:[eE][-+]?\d+)?)", text)
        if told and not path.exists():
            path = Path(told[1])
            try:
                scale = float(told[2])
            except ValueError:
                scale = math.nan
        if not path.is_file():
            raise UsageError(f"there is no LoRA file {path}: write FILE.safetensors[:scale]")
        if path.suffix != ".safetensors":
            raise UsageError(f"LoRA {path} is no safetensors file; pickled weights are not loaded")
        if not math.isfinite(scale):
            raise UsageError(f"scale {told[2] if told else scale} of LoRA {path} is no number")
        return cls(path, scale)

    def __str__(self) -> str:
        return f"{self.path.name}:{self.scale:g} sha256 {file_digest(self.path)[:16]}"

    def add_to(self, pipe: Any) -> None:
        """Load it into a pipeline. Raises `UsageError` where it does not fit."""
        kind = type(pipe).__name__
        if not hasattr(pipe, "load_lora_weights"):
            raise UsageError(f"a {kind} takes no LoRA")
        try:
            pipe.load_lora_weights(
                str(self.path.parent),
                weight_name=self.path.name,
                adapter_name=_LORA,
                use_safetensors=True,
                local_files_only=True,
            )
            if not any(pipe.get_list_adapters().values()):
                raise ValueError("it has no weights for any part of the pipeline")
            pipe.set_adapters([_LORA], [self.scale])
        except Exception as error:  # of diffusers, peft and safetensors, of many kinds
            raise UsageError(
                f"LoRA {self.path} does not fit a {kind}: {first_line(error)}"
            ) from error


def tile(vae: Any, side: int) -> None:
    """Let a VAE decode in overlapping tiles of `side` pixels. Raises `UsageError` if it can't."""
    pixels = getattr(vae, "tile_sample_min_size", None)
    latents = getattr(vae, "tile_latent_min_size", None)
    if not (callable(getattr(vae, "enable_tiling", None)) and pixels and latents):
        kind = "pipelines without a VAE" if vae is None else f"VAEs of class {type(vae).__name__}"
        raise UsageError(f"--vae-tile is {side}: {kind} can't be tiled by one size")
    factor = int(pixels) // int(latents)
    if side % factor or not 4 * factor <= side < pixels:  # a quarter of a tile is overlap
        raise UsageError(
            f"--vae-tile is {side}: this VAE takes multiples of {factor} from {4 * factor}, and "
            f"below the {pixels} that it was trained for"
        )
    vae.enable_tiling()
    vae.tile_sample_min_size, vae.tile_latent_min_size = side, side // factor


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value
