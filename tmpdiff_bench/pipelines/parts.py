"""The parts of a saved pipeline, told from its files alone: what each will take in memory, and
denoisers as mere shapes, whose weights come later.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from torch import nn

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.files import parse_json, read_text
from tmpdiff_bench.pipelines.loop import PLACES

_PICKLED = {".bin", ".ckpt", ".pt", ".pth"}
_ENCODERS = "text_encoder"


@dataclass(frozen=True)
class PartSizes:
    """Bytes of weights by part; activations, and levels other than the reference, come on top. The
    parts in `later` are loaded when text encoders have run and been freed.
    """

    parts: Mapping[str, int]
    later: Collection[str] = ()

    @property
    def most(self) -> int:
        """Most bytes at a time."""
        whole = sum(self.parts.values())
        if not self.later:
            return whole
        encoders = sum(size for name, size in self.parts.items() if name.startswith(_ENCODERS))
        return whole - min(encoders, sum(self.parts[name] for name in self.later))

    def __str__(self) -> str:
        each = ", ".join(f"{name} {size / 1e6:,.1f} MB" for name, size in self.parts.items())
        if not self.later:
            return f"{each}: {self.most / 1e6:,.1f} MB"
        return f"{each}; text encoders run first and are freed: {self.most / 1e6:,.1f} MB at most"


def read_index(folder: Path) -> dict[str, Any]:
    """`model_index.json` of a pipeline's folder. Raises `UsageError` where it is none."""
    path = folder / "model_index.json"
    if not path.is_file():
        raise UsageError(f"{folder} is no diffusers pipeline: it has no model_index.json")
    return _read(path)


def weight_files(folder: Path, variant: str | None = None) -> dict[str, list[Path]]:
    """The safetensors files of each part of a pipeline that has weights, of a variant where the
    part has it.

    Raises:
        UsageError: a part has pickled weights only; no part has the variant; no denoiser has
            weights.
    """
    index = {k: v for k, v in read_index(folder).items() if isinstance(v, list) and len(v) == 2}
    parts = [name for name, (library, _) in index.items() if library]
    found = {name: files for name in parts if (files := _files_of(folder / name, variant))}
    if not set(PLACES) & set(found):
        raise UsageError(f"{folder} has no weights of a denoiser: in none of {', '.join(PLACES)}")
    names = [path.name for files in found.values() for path in files]
    if variant and not any(f".{variant}." in name for name in names):
        raise UsageError(f"{folder} has no weights of the variant {variant!r}")
    return found


def part_sizes(files: Mapping[str, list[Path]], dtype: torch.dtype) -> dict[str, int]:
    """Bytes that parts take in `dtype`, from the headers of their files; what classes keep in
    float32 (some norms and embedders) counts as the rest. Raises `UsageError` where one is damaged.
    """
    sizes = {name: sum(file_size(path, dtype) for path in paths) for name, paths in files.items()}
    return dict(sorted(sizes.items(), key=lambda item: item[0] in PLACES))


def file_size(path: Path, dtype: torch.dtype) -> int:
    """Bytes of a file's tensors once loaded, from its header; integers stay as they are stored."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        total = 0
        for name, tensor in header.items():
            if name != "__metadata__":
                start, end = tensor["data_offsets"]
                floating = "F" in tensor["dtype"]  # F32, BF16, F8_E4M3, ...
                total += dtype.itemsize * math.prod(tensor["shape"]) if floating else end - start
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is no safetensors file, or damaged: {error}") from error
    return total


def placeholders(
    folder: Path, parts: Collection[str], dtype: torch.dtype, device: torch.device
) -> dict[str, nn.Module]:
    """Denoisers of the shapes, dtype and device that they will have, without weights, which take no
    memory. None, where no text encoders would be freed first, or weights are quantized.
    """
    names = [name for name in PLACES if name in parts]
    if not any(name.startswith(_ENCODERS) for name in parts) or any(
        "quantization_config" in _read(folder / name / "config.json") for name in names
    ):
        return {}
    found = {name: placeholder(folder, name, dtype, device) for name in names}
    blank = {name: module for name, module in found.items() if module is not None}
    return blank if len(blank) == len(names) else {}


def placeholder(
    folder: Path, name: str, dtype: torch.dtype, device: torch.device
) -> nn.Module | None:
    """A part without weights; None where its class is not of diffusers."""
    kind = part_class(folder, name)
    if not hasattr(kind, "from_config"):
        return None
    with init_empty_weights():
        whole: nn.Module = kind.from_config(_read(folder / name / "config.json"))
    for module in whole.modules():
        for key, parameter in module.named_parameters(recurse=False):
            # one number for all: whatever is computed from it by mistake will show
            blank = torch.full((), math.nan, dtype=dtype, device=device).expand(parameter.shape)
            module.register_parameter(key, nn.Parameter(blank, requires_grad=False))
    return nn.Module.to(whole, device).eval()


def load_part(
    folder: Path, name: str, files: Sequence[Path], dtype: torch.dtype, variant: str | None
) -> nn.Module:
    """A part with its weights."""
    told = variant if any(f".{variant}." in path.name for path in files) else None
    found: nn.Module = part_class(folder, name).from_pretrained(
        folder / name, dtype=dtype, variant=told, use_safetensors=True, local_files_only=True
    )
    return found


def part_class(folder: Path, name: str) -> Any:
    """The diffusers class of a part, or None where it is of another library."""
    library, kind = read_index(folder)[name]
    return getattr(diffusers, kind, None) if library == "diffusers" else None


def _files_of(part: Path, variant: str | None) -> list[Path]:
    for suffix in (f".{variant}", "") if variant else ("",):
        for name in ("diffusion_pytorch_model", "model"):
            index = part / f"{name}.safetensors.index{suffix}.json"
            if index.is_file():
                shards = _read(index).get("weight_map", {}).values()
                return [part / shard for shard in dict.fromkeys(shards)]
            if (part / f"{name}{suffix}.safetensors").is_file():
                return [part / f"{name}{suffix}.safetensors"]
    present = sorted(path.name for path in part.glob("*")) if part.is_dir() else []
    if other := [name for name in present if name.endswith(".safetensors")]:
        raise UsageError(
            f"{part} has {', '.join(other)} alone: name the variant, such as fp16, by --variant"
        )
    if any(Path(name).suffix in _PICKLED for name in present):
        raise UsageError(f"{part} has no safetensors weights; pickled weights are not loaded")
    return []


def _read(path: Path) -> dict[str, Any]:
    found = parse_json(read_text(path), str(path))
    if not isinstance(found, dict):
        raise UsageError(f"{path} holds no object")
    return found
