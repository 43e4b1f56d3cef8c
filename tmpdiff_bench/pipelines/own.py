"""Modules of the user's own that are levels: from memory, from a saved folder, from a GGUF file."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from tmpdiff_bench.errors import UsageError, check_known, first_line
from tmpdiff_bench.files import parse_json, read_text
from tmpdiff_bench.pipelines.digests import file_digest, module_digest, weights_digest
from tmpdiff_bench.pipelines.loading import quiet
from tmpdiff_bench.pipelines.loop import eager

GGUF = ".gguf"


class OwnModules:
    """Levels that are modules, for each denoiser of a pipeline; loaded when first asked for.

    `modules`: by the level's name, what stands for the denoiser: a module, a folder that diffusers
    saved of it (quantized or not) or of a whole pipeline, or a `.gguf` file of its class; where a
    pipeline has several denoisers, a folder of a pipeline, or one of these for each by its place.

    Raises:
        UsageError: nothing that can be a level, as far as files tell without loading weights.
    """

    def __init__(self, modules: Mapping[str, Any], places: Sequence[str]) -> None:
        self.given = {name: _by_place(name, given, places) for name, given in modules.items()}
        self._loaded: dict[tuple[str, str], nn.Module] = {}

    def specs(self) -> dict[str, dict[str, Any]]:
        """What each level is: sha256 by the denoiser's place."""
        return {
            name: {"own": {place: _digest(source) for place, source in sources.items()}}
            for name, sources in self.given.items()
        }

    def of(self, place: str, denoiser: nn.Module, dtype: torch.dtype) -> dict[str, nn.Module]:
        """The levels of the denoiser at a place, which computes in `dtype`, as they do.

        Raises:
            UsageError: one that can't be loaded, with the reason.
        """
        for name, sources in self.given.items():
            if place not in sources:
                raise UsageError(f"level {name} has no module for the {place}")
            source = sources[place]
            if isinstance(source, Path) and (name, place) not in self._loaded:
                self._loaded[name, place] = _loaded(name, source, eager(denoiser), dtype)
        return {
            name: self._loaded[name, place] if isinstance(source, Path) else eager(source)
            for name, sources in self.given.items()
            for source in [sources[place]]
        }


def check_sources(modules: Mapping[str, Any]) -> None:
    """Raise `UsageError` for what can't be a level of any denoiser, before a pipeline is loaded."""
    for name, given in modules.items():
        for one in given.values() if isinstance(given, Mapping) else (given,):
            _source(name, one)


def _by_place(name: str, given: Any, places: Sequence[str]) -> dict[str, Any]:
    if isinstance(given, Mapping):
        for place in given:
            check_known(f"denoiser in level {name}:", place, places)
        if missing := [place for place in places if place not in given]:
            raise UsageError(f"level {name} has no module for the {missing[0]}")
        return {place: _source(name, given[place]) for place in places}
    source = _source(name, given)
    if isinstance(source, Path) and (source / "model_index.json").is_file():
        return {place: _source(name, source / place) for place in places}
    if len(places) > 1:
        raise UsageError(
            f"level {name} is one module, and the pipeline has {', '.join(places)}: give one for "
            f"each, as modules={{{name!r}: {{{places[0]!r}: ..., {places[1]!r}: ...}}}}, or a "
            "folder of a whole pipeline"
        )
    return {places[0]: source}


def _source(name: str, given: Any) -> nn.Module | Path:
    """A module as it is, a path once it is known to be one of a module."""
    if isinstance(given, nn.Module):
        return given
    if not isinstance(given, str | Path):
        raise UsageError(
            f"level {name} is a {type(given).__name__}: a module, a folder or a .gguf file is one"
        )
    path = Path(given)
    if not path.exists():
        raise UsageError(f"level {name}: there is no {path}")
    if path.is_file() and path.suffix != GGUF:
        raise UsageError(
            f"level {name}: {path} is no {GGUF} file; of other formats, name the folder that "
            "diffusers saved"
        )
    if path.is_dir() and not any((path / x).is_file() for x in ("config.json", "model_index.json")):
        raise UsageError(
            f"level {name}: {path} is no folder that diffusers saved: it has no config.json"
        )
    return path


def _digest(source: nn.Module | Path) -> str:
    if isinstance(source, Path):
        return weights_digest(source) if source.is_dir() else file_digest(source)
    return module_digest(eager(source))


def _loaded(name: str, path: Path, denoiser: Any, dtype: torch.dtype) -> nn.Module:
    kind: Any = type(denoiser)
    try:
        with quiet():
            if path.is_file():
                module = _from_gguf(path, denoiser, dtype)
            else:
                told = parse_json(read_text(path / "config.json"), str(path)).get("_class_name")
                kind = getattr(diffusers, str(told), kind)
                module = kind.from_pretrained(
                    path, torch_dtype=dtype, use_safetensors=True, local_files_only=True
                )
    except Exception as error:  # of quantizers and readers, of many kinds
        raise UsageError(
            f"level {name}: {path} can't be loaded as a {kind.__name__}: {first_line(error)}"
        ) from error
    found: nn.Module = module.eval()
    return found


def _from_gguf(path: Path, denoiser: Any, dtype: torch.dtype) -> Any:
    """A denoiser's class with the weights of a GGUF file, which tells of no settings."""
    settings = diffusers.GGUFQuantizationConfig(compute_dtype=dtype)
    with tempfile.TemporaryDirectory() as folder:
        own = {k: v for k, v in denoiser.config.items() if k != "quantization_config"}
        config = {**own, "_class_name": type(denoiser).__name__}
        (Path(folder) / "config.json").write_text(json.dumps(config, default=str))
        return type(denoiser).from_single_file(
            str(path), config=folder, quantization_config=settings, torch_dtype=dtype
        )
