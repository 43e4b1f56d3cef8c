"""How quantization errors of single denoising steps add up, and which steps can bear them.

The public names are loaded when first used: importing the package imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tmpdiff_bench.additivity import additivity_test, analyse
    from tmpdiff_bench.deploy import apply, describe, remove
    from tmpdiff_bench.errors import UsageError
    from tmpdiff_bench.experiment import Experiment
    from tmpdiff_bench.plan import PrecisionPlan
    from tmpdiff_bench.trajectory import Recording, record

    __version__: str

_HOMES = {
    "Experiment": "tmpdiff_bench.experiment",
    "PrecisionPlan": "tmpdiff_bench.plan",
    "Recording": "tmpdiff_bench.trajectory",
    "UsageError": "tmpdiff_bench.errors",
    "additivity_test": "tmpdiff_bench.additivity",
    "analyse": "tmpdiff_bench.additivity",
    "apply": "tmpdiff_bench.deploy",
    "describe": "tmpdiff_bench.deploy",
    "record": "tmpdiff_bench.trajectory",
    "remove": "tmpdiff_bench.deploy",
}

__all__ = [
    "Experiment",
    "PrecisionPlan",
    "Recording",
    "UsageError",
    "__version__",
    "additivity_test",
    "analyse",
    "apply",
    "describe",
    "record",
    "remove",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # slow to import

        return version("tmpdiff_bench")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
