"""Diffusion pipelines of any class: loading them, their own loops, the layers that levels change.

Names are imported when they are first used, so that the commands' `--help` is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from tmpdiff_bench.pipelines.embedded import EMBEDDED, MODELS, embedded_models

if TYPE_CHECKING:
    from tmpdiff_bench.pipelines.layers import quantized_layers, resolve_layers
    from tmpdiff_bench.pipelines.loading import DTYPES, LoadedModel, check_device, load_pipeline
    from tmpdiff_bench.pipelines.loop import denoisers

__all__ = [
    "DTYPES",
    "EMBEDDED",
    "MODELS",
    "LoadedModel",
    "check_device",
    "denoisers",
    "embedded_models",
    "load_pipeline",
    "quantized_layers",
    "resolve_layers",
]

_HOMES = {
    "DTYPES": "loading",
    "LoadedModel": "loading",
    "check_device": "loading",
    "denoisers": "loop",
    "load_pipeline": "loading",
    "quantized_layers": "layers",
    "resolve_layers": "layers",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
