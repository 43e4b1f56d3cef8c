"""The models that ship with the library, and the arguments with which they are called. The one file
of the package that names pipeline classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tmpdiff_bench.errors import check_known
from tmpdiff_bench.files import data_folder

EMBEDDED = "embedded"
GUIDANCE = 4.0
MAX_TOKENS = 24  # the longest caption has 21 words
_CLASSES = {
    "sd3": "StableDiffusion3Pipeline",
    "flux": "FluxPipeline",
    "pixart": "PixArtSigmaPipeline",
    "sdxl": "StableDiffusionXLPipeline",
}
# What is not here is what the pipeline's own defaults are: 64 pixels a side, but for flux.
_CALLS: dict[str, dict[str, Any]] = {
    "sd3": {"guidance_scale": GUIDANCE, "max_sequence_length": MAX_TOKENS},
    "flux": {
        "true_cfg_scale": GUIDANCE,
        "negative_prompt": "",
        "height": 64,
        "width": 64,
        "max_sequence_length": MAX_TOKENS,
    },
    "pixart": {
        "guidance_scale": GUIDANCE,
        "max_sequence_length": MAX_TOKENS,
        "use_resolution_binning": False,
        "clean_caption": False,
    },
    "sdxl": {"guidance_scale": GUIDANCE},
}
MODELS = tuple(_CLASSES)


def embedded_models() -> tuple[str, ...]:
    """The models whose weights are in this installation."""
    return tuple(name for name in MODELS if (model_folder(name) / "model_index.json").is_file())


def model_folder(model: str) -> Path:
    """Where an embedded model is, or would be."""
    return data_folder() / "models" / model


def pipeline_class(model: str) -> str:
    """The name of an embedded model's class. Raises `UsageError` for a model that is unknown."""
    check_known("model", model, MODELS)
    return _CLASSES[model]


def call_defaults(model: str) -> dict[str, Any]:
    """Arguments of `__call__` with which an embedded model is run, unless told otherwise."""
    return dict(_CALLS[model])
