"""Finding weights: the embedded ones, a local folder, or a repository of the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from safetensors import SafetensorError

from tmpdiff_bench.errors import UsageError, unknown
from tmpdiff_bench.pipelines.base import StepwisePipeline
from tmpdiff_bench.pipelines.flux import FluxStepwise
from tmpdiff_bench.pipelines.pixart import PixArtStepwise
from tmpdiff_bench.pipelines.sd3 import Sd3Stepwise
from tmpdiff_bench.pipelines.sdxl import SdxlStepwise
from tmpdiff_bench.resources import data_folder

EMBEDDED = "embedded"
_FAMILIES: dict[str, tuple[str, Callable[..., StepwisePipeline]]] = {
    "sd3": ("StableDiffusion3Pipeline", Sd3Stepwise),
    "flux": ("FluxPipeline", FluxStepwise),
    "pixart": ("PixArtSigmaPipeline", PixArtStepwise),
    "sdxl": ("StableDiffusionXLPipeline", SdxlStepwise),
}
MODELS = tuple(_FAMILIES)


@dataclass(frozen=True)
class LoadedModel:
    """A diffusers pipeline with what is said of it in reports."""

    family: str
    pipeline: Any
    weights: str
    digest: str

    @property
    def title(self) -> str:
        """Such as "sd3 (embedded, 3.6 M)": family, weights, parameters of the denoiser."""
        denoiser = getattr(self.pipeline, "transformer", None) or self.pipeline.unet
        millions = sum(p.numel() for p in denoiser.parameters()) / 1e6
        size = f"{millions:.1f} M" if millions < 1000 else f"{millions / 1000:.1f} B"
        return f"{self.family} ({self.weights}, {size})"

    def stepwise(self, *, steps: int, guidance: float) -> StepwisePipeline:
        """The denoising loop taken apart, for a number of steps and a guidance scale."""
        return _FAMILIES[self.family][1](self.pipeline, steps=steps, guidance=guidance)


def load_model(
    model: str,
    *,
    weights: str = EMBEDDED,
    revision: str | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LoadedModel:
    """Load a family's pipeline from safetensors, on `device`.

    `weights`: `embedded`, a local folder that `save_pretrained` wrote, or a hub id (with
    `revision`).

    Raises:
        UsageError: unknown model; absent device; weights that are not there, are of another family
            or hold no safetensors.
    """
    if model not in _FAMILIES:
        raise unknown("model", model, _FAMILIES)
    target = available_device(device)
    folder = data_folder() / "models" / model if weights == EMBEDDED else Path(weights)
    if not folder.is_dir():
        folder = _from_hub(model, weights, revision)
    _check_family(folder, model)
    # the components of a small model load faster than their bars are drawn
    transformers.logging.disable_progress_bar()
    diffusers.logging.disable_progress_bar()
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"{folder} can't be loaded as a pipeline: {reason}") from error
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(target)
    return LoadedModel(model, pipeline, weights, weights_digest(folder))


def _from_hub(model: str, weights: str, revision: str | None) -> Path:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if weights == EMBEDDED:
        raise UsageError(
            f"the embedded weights of {model} are not in this installation: reinstall the package, "
            f"or train them with `python -m tmpdiff_bench.zoo train --model {model}`"
        )
    try:
        return Path(DiffusionPipeline.download(weights, revision=revision, use_safetensors=True))
    except (OSError, ValueError, HFValidationError, HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"no weights at {weights!r}: neither a local folder nor a reachable hub repository "
            f"({reason}); name a folder that `save_pretrained` wrote, a hub id that you can reach "
            f"(with `hf auth login` where it is gated), or use --weights {EMBEDDED}"
        ) from error


def _check_family(folder: Path, model: str) -> None:
    index = folder / "model_index.json"
    if not index.is_file():
        raise UsageError(f"{folder} is no diffusers pipeline: it has no model_index.json")
    try:
        found = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    except (ValueError, AttributeError) as error:
        raise UsageError(f"{index} is damaged: {error}") from error
    wanted = _FAMILIES[model][0]
    if found != wanted:
        raise UsageError(f"{folder} holds a {found}, but --model {model} takes a {wanted}")
    if not any(folder.rglob("*.safetensors")):
        raise UsageError(f"{folder} has no safetensors weights; pickled weights are not loaded")


def available_device(name: str) -> torch.device:
    """The device of a name. Raises `UsageError` where it is absent."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {name!r} is not available here; use --device cpu") from error
    return device


def weights_digest(folder: Path) -> str:
    """sha256 over the names and contents of a pipeline's weight, tokenizer and config files."""
    hasher = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".safetensors", ".json", ".txt", ".model"}:
            hasher.update(path.relative_to(folder).as_posix().encode())
            with path.open("rb") as file:
                hasher.update(hashlib.file_digest(file, "sha256").digest())
    return hasher.hexdigest()
