"""The parts of a saved pipeline, told from its files alone: what each will take in memory, and the
large ones as shapes, to be loaded later.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from tmpdiff_bench.errors import UsageError

LATER = ("transformer", "unet", "vae")  # parts that are needed once prompts have been encoded


@dataclass(frozen=True)
class PartSizes:
    """Bytes of weights by part; activations, and levels other than the reference, come on top."""

    parts: Mapping[str, int]

    @property
    def encoders(self) -> int:
        """Bytes of the text encoders, which run first and are freed."""
        return sum(size for name, size in self.parts.items() if name not in LATER)

    @property
    def most(self) -> int:
        """Most bytes at a time, of a pipeline that is loaded in stages."""
        return max(self.encoders, sum(self.parts.values()) - self.encoders)

    def __str__(self) -> str:
        each = ", ".join(f"{name} {size / 1e6:,.1f} MB" for name, size in self.parts.items())
        return f"{each}; text encoders run first and are freed: {self.most / 1e6:,.1f} MB at most"


def part_sizes(folder: Path, dtype: torch.dtype) -> PartSizes:
    """What the parts of a pipeline take in `dtype`, from the headers of its safetensors files.

    Raises:
        UsageError: a part has no safetensors, or a header is damaged.
    """
    sizes = {}
    for name in weighted_parts(folder):
        sizes[name] = sum(_bytes(path, dtype) for path in weight_files(folder / name))
    return PartSizes(dict(sorted(sizes.items(), key=lambda item: item[0] in LATER)))


def weighted_parts(folder: Path) -> list[str]:
    """Names of the parts of a pipeline that have weights, in the order of its index."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    parts = [name for name, kind in index.items() if isinstance(kind, list) and kind[0]]
    found = [name for name in parts if name in LATER or name.startswith("text_encoder")]
    if not set(LATER) & set(found):
        raise UsageError(f"{folder} holds no part of a pipeline but its index")
    return found


def weight_files(part: Path) -> Sequence[Path]:
    """The safetensors of a part: those that its index names, or the one file of its usual name."""
    for name in ("diffusion_pytorch_model", "model"):
        index = part / f"{name}.safetensors.index.json"
        if index.is_file():
            shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            return [part / shard for shard in dict.fromkeys(shards)]
        if (part / f"{name}.safetensors").is_file():
            return [part / f"{name}.safetensors"]
    raise UsageError(f"{part} has no safetensors weights; pickled weights are not loaded")


def _bytes(path: Path, dtype: torch.dtype) -> int:
    """Bytes of a file's tensors once loaded, from its header; integers stay as they are stored."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        total = 0
        for name, tensor in header.items():
            if name != "__metadata__":
                start, end = tensor["data_offsets"]
                floating = "F" in tensor["dtype"]  # F32, BF16, F8_E4M3, ...
                total += dtype.itemsize * math.prod(tensor["shape"]) if floating else end - start
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UsageError(f"{path} is no safetensors file, or damaged: {error}") from error
    return total


def shapes_only(folder: Path, dtype: torch.dtype) -> dict[str, nn.Module]:
    """The parts that come later as modules on the meta device, which takes no memory."""
    found: dict[str, nn.Module] = {}
    for name in weighted_parts(folder):
        if name in LATER:
            kind = part_class(folder, name)
            with torch.device("meta"):
                module = kind.from_config(kind.load_config(folder / name))
                # not its own `to`, which warns of modules kept in float32 even where there are none
                found[name] = nn.Module.to(module, dtype)
    return found


def load_later(folder: Path, dtype: torch.dtype, device: torch.device) -> dict[str, nn.Module]:
    """The same parts with their weights, on a device."""
    return {
        name: part_class(folder, name)
        .from_pretrained(folder / name, dtype=dtype, use_safetensors=True, local_files_only=True)
        .to(device)
        .eval()
        for name in weighted_parts(folder)
        if name in LATER
    }


def part_class(folder: Path, name: str) -> Any:
    """The diffusers class of a part."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    return getattr(diffusers, index[name][1])
