"""Running plans in diffusers pipelines, and handing them to engines.

Names are imported when they are first used: policies need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tmpdiff_bench.deploy.formats import FORMATS, export
    from tmpdiff_bench.deploy.pipeline import apply, describe, remove
    from tmpdiff_bench.deploy.policy import StepPolicy
    from tmpdiff_bench.deploy.projection import Projection, project

__all__ = [
    "FORMATS",
    "Projection",
    "StepPolicy",
    "apply",
    "describe",
    "export",
    "project",
    "remove",
]

_MODULES = {
    "FORMATS": "formats",
    "Projection": "projection",
    "StepPolicy": "policy",
    "apply": "pipeline",
    "describe": "pipeline",
    "export": "formats",
    "project": "projection",
    "remove": "pipeline",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
