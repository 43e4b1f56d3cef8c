"""Digests of weights: of a folder, of a file, of a pipeline in memory."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from tmpdiff_bench.errors import UsageError


def weights_digest(folder: Path, variant: str | None = None) -> str:
    """sha256 over the names and contents of a pipeline's weight, tokenizer and config files, and
    the variant that is taken of them.
    """
    hasher = hashlib.sha256((variant or "").encode())
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".safetensors", ".json", ".txt", ".model"}:
            hasher.update(path.relative_to(folder).as_posix().encode())
            hasher.update(bytes.fromhex(file_digest(path)))
    return hasher.hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file. Raises `UsageError` where it can't be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror or error}") from error


def pipeline_digest(pipe: Any) -> str:
    """sha256 over all tensors of a pipeline's modules, the settings of its parts and its own, and
    the words of its tokenizers. What was patched by hand doesn't show.

    Raises:
        UsageError: weights that are on the meta device.
    """
    own = [type(pipe).__name__, _settings(pipe)]
    hasher = hashlib.sha256(json.dumps(own, sort_keys=True).encode())
    for name, part in sorted(vars(pipe).items()):
        if name.startswith("_"):  # what the last call left
            continue
        told = part if isinstance(part, bool | int | float | str) else type(part).__name__
        hasher.update(json.dumps([name, told, _settings(part)], sort_keys=True).encode())
        if isinstance(part, nn.Module):
            _feed_module(hasher, name, part)
    return hasher.hexdigest()


def module_digest(module: nn.Module) -> str:
    """The same of one module."""
    own = [type(module).__name__, _settings(module)]
    hasher = hashlib.sha256(json.dumps(own, sort_keys=True).encode())
    _feed_module(hasher, "it", module)
    return hasher.hexdigest()


def _feed_module(hasher: Any, name: str, module: nn.Module) -> None:
    for key, tensor in _tensors(module).items():
        hasher.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        _feed(hasher, f"{name}.{key}", tensor)
    scales = [getattr(part, "scaling", None) for part in module.modules()]  # of LoRAs
    hasher.update(json.dumps([s for s in scales if isinstance(s, dict)]).encode())


def _settings(part: Any) -> Any:
    if callable(getattr(part, "get_vocab", None)):
        return part.get_vocab()
    config = getattr(part, "config", part)
    found = config.to_dict() if callable(getattr(config, "to_dict", None)) else config
    if not isinstance(found, dict):
        return None
    # names with an underscore say where it came from
    return {str(key): _plain(value) for key, value in found.items() if str(key)[:1] != "_"}


def _plain(value: Any) -> Any:
    """A value as JSON, in which objects are named by their class alone: they may have addresses."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value) if isinstance(value, torch.dtype) else type(value).__name__


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, those that are not saved too."""
    saved = {k: v for k, v in module.state_dict().items() if isinstance(v, Tensor)}
    return {**dict(module.named_buffers()), **saved}


def _feed(hasher: Any, name: str, tensor: Tensor) -> None:
    if is_traceable_wrapper_subclass(tensor):  # quantized by torchao
        for inner in tensor.__tensor_flatten__()[0]:
            _feed(hasher, name, getattr(tensor, inner))
        return
    if tensor.is_meta:
        raise UsageError(
            f"{name} has no weights in memory (sequential offload): hand the pipeline in before "
            "offloading is enabled"
        )
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    hasher.update(flat.view(torch.uint8).numpy().data)
