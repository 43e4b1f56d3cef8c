"""Finding weights and loading them: the embedded ones, a folder, a single file, a hub id, or a
pipeline that is in memory already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from torch import nn

from tmpdiff_bench.errors import UsageError, check_known, first_line, unknown
from tmpdiff_bench.pipelines.changes import Lora, scheduler_choice, tile
from tmpdiff_bench.pipelines.digests import file_digest, pipeline_digest, weights_digest
from tmpdiff_bench.pipelines.embedded import (
    EMBEDDED,
    MODELS,
    call_defaults,
    model_folder,
    pipeline_class,
)
from tmpdiff_bench.pipelines.loop import denoisers, eager
from tmpdiff_bench.pipelines.parts import (
    PartSizes,
    file_size,
    load_part,
    part_sizes,
    placeholder,
    placeholders,
    read_index,
    weight_files,
)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
IN_MEMORY = "in memory"  # what is said of the weights of a pipeline that is handed in
_CONFIGS = ["*.json", "**/*.json", "*.txt", "**/*.txt", "**/*.model"]  # all but weights


@dataclass
class LoadedModel:
    """A pipeline with what is said of it in reports.

    `weights`: as they were asked for. `digest`: sha256 of them. `device`: where it runs.
    `defaults`: arguments of its call unless others are given. `adapter`: its LoRA. `later`: loads
    the denoisers, where the pipeline has only their shapes yet; `complete` puts them in.
    """

    name: str
    pipeline: Any
    weights: str
    digest: str
    device: torch.device
    defaults: dict[str, Any] = field(default_factory=dict)
    adapter: str | None = None
    later: Callable[[], Mapping[str, nn.Module]] | None = None

    @property
    def title(self) -> str:
        """Such as "sd3 (embedded, 3.5 M)": name, weights, parameters of the denoisers."""
        modules = denoisers(self.pipeline).values()
        millions = sum(p.numel() for module in modules for p in module.parameters()) / 1e6
        size = f"{millions:.1f} M" if millions < 1000 else f"{millions / 1000:.1f} B"
        return f"{self.name} ({self.weights}, {size})"

    def complete(self) -> None:
        """Load what was left for later. Raises `UsageError` where it can't be loaded."""
        if self.later is not None:
            for name, module in self.later().items():
                setattr(self.pipeline, name, module)
            self.later = None


def load_pipeline(
    model: str | None = None,
    *,
    weights: Any = EMBEDDED,
    revision: str | None = None,
    variant: str | None = None,
    device: str = "cpu",
    dtype: str = "fp32",
    scheduler: str | None = None,
    lora: str | None = None,
    vae_tile: int | None = None,
    staged: bool = False,
    announce: Callable[[PartSizes], object] | None = None,
) -> LoadedModel:
    """Load a pipeline of any class from safetensors, on `device`, in `dtype` (one of `DTYPES`).

    `weights`: "embedded", a folder that `save_pretrained` wrote, a .safetensors file, a hub id
    (with `revision`), or a pipeline, which is taken as it is. `model`: an embedded model, whose
    class other weights have to be of, or any name for other weights. `variant`: as in
    `from_pretrained`. `scheduler`: `CLASS[:key=value,...]`, in place of the pipeline's, with its
    other settings. `lora`: `FILE[:scale]`. `vae_tile`: images are decoded in overlapping tiles of
    so many pixels a side, in less memory, with seams blended. `staged`: denoisers come when
    `complete` is called, so that text encoders can run first and be freed; where that can't be done
    all come at once. `announce` is told what the parts take before any of them is loaded.

    Raises:
        UsageError: an unknown model, dtype, scheduler or setting; an absent device; weights that
            are not there, are damaged, of another class, or hold no safetensors or no denoiser; a
            LoRA or a tile that does not fit; an option that would have no effect.
    """
    kind = _dtype(dtype)
    if not isinstance(weights, str | Path):
        denoisers(weights)  # whatever has none is no pipeline
        options = {"revision": revision, "variant": variant, "scheduler": scheduler, "lora": lora}
        _check_as_it_is(weights, {**options, "vae_tile": vae_tile}, device, kind)
        own = type(weights).__name__
        _check_class("weights=", own, model)
        name, digest = model or own.removesuffix("Pipeline"), pipeline_digest(weights)
        return LoadedModel(name, weights, IN_MEMORY, digest, _device_of(weights))
    target, weights = check_device(device), str(weights)
    new_scheduler = None if scheduler is None else scheduler_choice(scheduler)
    adapter = None if lora is None else Lora.parse(lora)
    path = _find(model, weights, revision, variant)
    blank: dict[str, nn.Module] = {}
    with quiet():
        if path.is_file():
            sizes = PartSizes({path.name: file_size(path, kind)})
            if announce is not None:
                announce(sizes)
            pipe = _from_file(path, kind)
            _check_class(path, type(pipe).__name__, model)
        else:
            _check_class(path, read_index(path).get("_class_name"), model)
            files = weight_files(path, variant)
            if vae_tile is not None and "vae" in files:
                tile(placeholder(path, "vae", kind, target), vae_tile)  # before all is loaded
            if staged and adapter is None:
                blank = placeholders(path, files, kind, target)
            sizes = PartSizes(part_sizes(files, kind), tuple(blank))
            if announce is not None:
                announce(sizes)
            pipe = _from_folder(path, kind, variant, blank)
        denoisers(pipe)
        for name, part in pipe.components.items():
            if isinstance(part, nn.Module) and name not in blank:
                part.to(target)
        if new_scheduler is not None:
            pipe.scheduler = new_scheduler(pipe.scheduler)
        if adapter is not None:
            adapter.add_to(pipe)
        if vae_tile is not None:
            tile(getattr(pipe, "vae", None), vae_tile)
    pipe.set_progress_bar_config(disable=True)  # a run has one of its own

    def later() -> dict[str, nn.Module]:
        with quiet(), _loading(path):
            return {n: load_part(path, n, files[n], kind, variant).to(target) for n in blank}

    return LoadedModel(
        name=model or (path.stem if path.is_file() else Path(weights).resolve().name),
        pipeline=pipe,
        weights=weights,
        digest=file_digest(path) if path.is_file() else weights_digest(path, variant),
        device=target,
        defaults=call_defaults(model) if model and weights == EMBEDDED else {},
        adapter=None if adapter is None else str(adapter),
        later=later if blank else None,
    )


def check_device(name: str) -> torch.device:
    """The device of a name. Raises `UsageError` where it is not there."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {name!r} is not available here; use --device cpu") from error
    return device


def dtype_of(pipe: Any) -> torch.dtype:
    """What the denoisers of a pipeline compute in."""
    denoiser: Any = eager(next(iter(denoisers(pipe).values())))
    found: torch.dtype = getattr(denoiser, "dtype", None) or next(denoiser.parameters()).dtype
    return found


def dtype_name(pipe: Any) -> str:
    """The same, as `DTYPES` have it. Raises `UsageError` where they don't."""
    own = dtype_of(pipe)
    for name, dtype in DTYPES.items():
        if dtype == own:
            return name
    raise UsageError(f"a {type(pipe).__name__} in {own}: {', '.join(DTYPES)} are supported")


def _dtype(name: str) -> torch.dtype:
    """Of a name of ours, or of torch's."""
    named = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}
    found = {**DTYPES, **named}.get(name.removeprefix("torch."))
    if found is None:
        raise unknown("dtype", name, DTYPES)
    return found


def _find(model: str | None, weights: str, revision: str | None, variant: str | None) -> Path:
    """The folder or file of weights, downloaded or from the hub's cache where it is a hub id."""
    path = Path(weights)
    if weights == EMBEDDED:
        path = model_folder(_embedded(model))
    elif not path.exists() and path.suffix != ".safetensors":
        return _from_hub(weights, revision, variant)
    if revision is not None:
        raise UsageError(f"revision {revision!r} is of a hub id, and weights are {weights}")
    if path.is_file() and path.suffix != ".safetensors":
        raise UsageError(f"{weights} is no .safetensors file; pickled weights are not loaded")
    if path.is_file() and variant is not None:
        raise UsageError(f"variant {variant!r} is of files in a folder, and {weights} is one file")
    if not path.exists():
        raise UsageError(f"there is no file {weights}")
    return path


def _embedded(model: str | None) -> str:
    """The name of an embedded model, checked."""
    if model is None:
        raise UsageError(f"name an embedded model ({', '.join(MODELS)}) or other weights")
    check_known("model", model, MODELS)
    if not model_folder(model).is_dir():
        raise UsageError(
            f"the embedded weights of {model} are not in this installation: reinstall the package, "
            f"or train them with `python -m tmpdiff_bench.zoo train --model {model}`"
        )
    return model


def _from_hub(weights: str, revision: str | None, variant: str | None) -> Path:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        with quiet():  # it warns of a hub out of reach; one line is ours
            folder = DiffusionPipeline.download(
                weights, revision=revision, variant=variant, use_safetensors=True
            )
    except (OSError, ValueError, HFValidationError, HfHubHTTPError) as error:
        raise UsageError(
            f"no weights at {weights!r}: neither a local folder nor a reachable hub repository "
            f"({first_line(error)}); name a folder that `save_pretrained` wrote, a hub id that you "
            f"can reach (with `hf auth login` where it is gated), or use --weights {EMBEDDED}"
        ) from error
    return Path(folder)


def _check_class(weights: Path | str, found: Any, model: str | None) -> None:
    if model in MODELS and found != pipeline_class(model):
        raise UsageError(
            f"{weights} holds a {found}, but --model {model} takes a {pipeline_class(model)}"
        )


def _from_folder(
    folder: Path, dtype: torch.dtype, variant: str | None, given: Mapping[str, nn.Module]
) -> Any:
    """A pipeline with the parts of a folder but those `given`."""
    kind = getattr(diffusers, str(read_index(folder).get("_class_name")), DiffusionPipeline)
    with _loading(folder):
        return kind.from_pretrained(  # DiffusionPipeline's would load given parts all the same
            folder,
            dtype=dtype,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            **given,
        )


def _from_file(path: Path, dtype: torch.dtype) -> Any:
    """A pipeline of a single file: what it is, diffusers tells from its keys; its settings and
    tokenizers come from the repository that diffusers names for it, or from the hub's cache.
    """
    from diffusers.loaders.single_file_utils import (
        fetch_diffusers_config,
        load_single_file_checkpoint,
    )
    from huggingface_hub import snapshot_download

    with _loading(path):
        repository = fetch_diffusers_config(load_single_file_checkpoint(str(path)))
        name = repository["pretrained_model_name_or_path"]
    try:
        folder = snapshot_download(name, allow_patterns=_CONFIGS)
    except Exception as error:  # of the hub's client and those below it, of many kinds
        raise UsageError(
            f"{path} goes with the settings and tokenizers of {name}, which are neither in the "
            f"hub's cache nor within reach ({first_line(error)}): download them, or name a folder "
            "that `save_pretrained` wrote"
        ) from error
    kind: Any = getattr(diffusers, read_index(Path(folder))["_class_name"], None)
    if not hasattr(kind, "from_single_file"):
        raise UsageError(f"{path} holds a part of {name}, not a pipeline: name a folder")
    with _loading(path):
        return kind.from_single_file(
            str(path), config=folder, torch_dtype=dtype, local_files_only=True
        )


def _check_as_it_is(pipe: Any, options: Mapping[str, Any], device: str, dtype: torch.dtype) -> None:
    """Options that would change a pipeline that is handed in are refused. Of device and dtype, the
    defaults say nothing.
    """
    own = {"device": _device_of(pipe).type, "dtype": dtype_of(pipe)}
    asked = {"device": torch.device(device).type, "dtype": dtype}
    defaults = {"device": "cpu", "dtype": torch.float32}
    wrong = {name: value for name, value in options.items() if value is not None}
    wrong |= {name: asked[name] for name in asked if asked[name] not in (own[name], defaults[name])}
    for name, value in wrong.items():
        raise UsageError(
            f"{name}={value} would change the {type(pipe).__name__} that was handed in, which is "
            "taken as it is: change it before, or leave this out"
        )


def _device_of(pipe: Any) -> torch.device:
    """Where a pipeline runs: offloading keeps its weights elsewhere."""
    device: torch.device = getattr(pipe, "_execution_device", pipe.device)
    return device


@contextmanager
def _loading(path: Path) -> Iterator[None]:
    """What goes wrong in diffusers and below becomes one line."""
    try:
        yield
    except Exception as error:  # damaged settings and weights fail in many ways
        raise UsageError(f"{path} can't be loaded as a pipeline: {first_line(error)}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """While others load. Their bars stay away for good: small models load faster than these are
    drawn.
    """
    loggings = (diffusers.logging, transformers.logging)
    before = [logging.get_verbosity() for logging in loggings]
    for logging in loggings:
        logging.disable_progress_bar()
        logging.set_verbosity_error()
    try:
        yield
    finally:
        for logging, verbosity in zip(loggings, before, strict=True):
            logging.set_verbosity(verbosity)
