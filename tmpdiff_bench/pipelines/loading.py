"""Finding weights: the embedded ones, a local folder, or a repository of the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from safetensors import SafetensorError
from torch import nn

from tmpdiff_bench.errors import UsageError, unknown
from tmpdiff_bench.pipelines.base import StepwisePipeline
from tmpdiff_bench.pipelines.flux import FluxStepwise
from tmpdiff_bench.pipelines.parts import PartSizes, load_later, part_sizes, shapes_only
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
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class LoadedModel:
    """A diffusers pipeline with what is said of it in reports.

    `device`: where its parts go. `rest`: loads the parts of which the pipeline has only the shapes,
    where it was loaded in stages; `free_text_encoders` of its adapter calls it.
    """

    family: str
    pipeline: Any
    weights: str
    digest: str
    device: torch.device | None = None
    rest: Callable[[], dict[str, nn.Module]] | None = None

    @property
    def title(self) -> str:
        """Such as "sd3 (embedded, 3.6 M)": family, weights, parameters of the denoiser."""
        denoiser = getattr(self.pipeline, "transformer", None) or self.pipeline.unet
        millions = sum(p.numel() for p in denoiser.parameters()) / 1e6
        size = f"{millions:.1f} M" if millions < 1000 else f"{millions / 1000:.1f} B"
        return f"{self.family} ({self.weights}, {size})"

    def stepwise(self, *, steps: int, guidance: float) -> StepwisePipeline:
        """The denoising loop taken apart, for a number of steps and a guidance scale."""
        adapter = _FAMILIES[self.family][1]
        return adapter(
            self.pipeline, steps=steps, guidance=guidance, device=self.device, rest=self.rest
        )


def load_model(
    model: str,
    *,
    weights: str = EMBEDDED,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str = "fp32",
    staged: bool = False,
    vae_tile: int | None = None,
    announce: Callable[[PartSizes], object] | None = None,
) -> LoadedModel:
    """Load a family's pipeline from safetensors, on `device`, in `dtype` (one of `DTYPES`).

    `weights`: `embedded`, a local folder that `save_pretrained` wrote, or a hub id (with
    `revision`). `staged`: the text encoders only; network and VAE follow when the adapter's
    `free_text_encoders` is called, so that both are never in memory together. `vae_tile`: images
    are decoded in overlapping tiles of so many pixels a side, in less memory, with seams blended.
    `announce` is told what the parts take before any of them is loaded.

    Raises:
        UsageError: unknown model or dtype; absent device; weights that are not there, are of
            another family or hold no safetensors; a tile that does not fit.
    """
    if model not in _FAMILIES:
        raise unknown("model", model, _FAMILIES)
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    target, kind = check_device(device), DTYPES[dtype]
    folder = find_weights(model, weights, revision)
    sizes = part_sizes(folder, kind)
    _check_tile(folder, vae_tile)
    if announce is not None:
        announce(sizes)
    # the components of a small model load faster than their bars are drawn
    transformers.logging.disable_progress_bar()
    diffusers.logging.disable_progress_bar()

    def rest() -> dict[str, nn.Module]:
        found = load_later(folder, kind, target)
        _tile(found["vae"], vae_tile)
        return found

    absent = shapes_only(folder, kind) if staged else {}
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            folder, dtype=kind, use_safetensors=True, local_files_only=True, **absent
        )
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"{folder} can't be loaded as a pipeline: {reason}") from error
    pipeline.set_progress_bar_config(disable=True)
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module) and name not in absent:
            part.to(target)
    _tile(pipeline.vae, vae_tile)
    digest = weights_digest(folder)
    return LoadedModel(model, pipeline, weights, digest, target, rest if staged else None)


def find_weights(model: str, weights: str, revision: str | None = None) -> Path:
    """The folder of a family's weights, downloaded or from the hub's cache where it is a hub id.

    Raises:
        UsageError: they are not there, are of another family, or hold no safetensors.
    """
    folder = data_folder() / "models" / model if weights == EMBEDDED else Path(weights)
    if not folder.is_dir():
        folder = _from_hub(model, weights, revision)
    _check_family(folder, model)
    return folder


def embedded_models() -> tuple[str, ...]:
    """The families whose embedded weights are in this installation."""
    models = data_folder() / "models"
    return tuple(model for model in MODELS if (models / model / "model_index.json").is_file())


def _check_tile(folder: Path, side: int | None) -> None:
    if side is None:
        return
    config = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))
    factor, whole = _vae_factor(config), config["sample_size"]
    if side % factor or not 4 * factor <= side < whole:  # a quarter of a tile is overlap
        raise UsageError(
            f"--vae-tile is {side}: this VAE takes multiples of {factor} from {4 * factor}, and "
            f"images are {whole} pixels a side"
        )


def _tile(vae: Any, side: int | None) -> None:
    if side is not None:
        vae.enable_tiling()
        vae.tile_sample_min_size, vae.tile_latent_min_size = side, side // _vae_factor(vae.config)


def _vae_factor(config: Mapping[str, Any]) -> int:
    """Pixels a side of one latent."""
    factor: int = 2 ** (len(config["block_out_channels"]) - 1)
    return factor


def _from_hub(model: str, weights: str, revision: str | None) -> Path:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if weights == EMBEDDED:
        raise UsageError(
            f"the embedded weights of {model} are not in this installation: reinstall the package, "
            f"or train them with `python -m tmpdiff_bench.zoo train --model {model}`"
        )
    verbosity = diffusers.logging.get_verbosity()
    diffusers.logging.set_verbosity_error()  # it warns of a hub out of reach; one line is ours
    try:
        return Path(DiffusionPipeline.download(weights, revision=revision, use_safetensors=True))
    except (OSError, ValueError, HFValidationError, HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"no weights at {weights!r}: neither a local folder nor a reachable hub repository "
            f"({reason}); name a folder that `save_pretrained` wrote, a hub id that you can reach "
            f"(with `hf auth login` where it is gated), or use --weights {EMBEDDED}"
        ) from error
    finally:
        diffusers.logging.set_verbosity(verbosity)


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


def check_device(name: str) -> torch.device:
    """The device of a name. Raises `UsageError` where it is not there."""
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
