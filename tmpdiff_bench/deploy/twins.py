"""A denoiser at another level, made from one that is in use: compiled, offloaded, with a LoRA."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from torch import nn

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.levels import Level, LevelBank

# What accelerate and diffusers leave on modules that they offload. It is bound to these modules,
# and its own references lead to other models: a copy must not follow them.
HOOKS = ("forward", "_old_forward", "_hf_hook", "_diffusers_hook")
_ADAPTER = ("active_adapters", "disable_adapters", "merged_adapters", "scaling")


def eager(denoiser: nn.Module) -> nn.Module:
    """The module itself where `torch.compile` has wrapped it."""
    inner: nn.Module = getattr(denoiser, "_orig_mod", denoiser)
    return inner


def twin(denoiser: nn.Module, level: str, quantized: Sequence[str]) -> nn.Module:
    """The denoiser at a level: compiled and offloaded by groups where the denoiser is.

    Raises:
        UsageError: as `LevelBank`; a native level of weights that are not where they run.
    """
    source = eager(denoiser)
    offloading = _group_offloading(source)
    if offloading is not None:
        check_place(source, (level,), offloading.onload_device)
    with _loaded(source, offloading):
        with _without_hooks(source):
            made = LevelBank(source, (level,), quantized)[level]
        for name, module in source.named_modules():
            if module._compiled_call_impl is not None:
                made.get_submodule(name).compile()
        if offloading is not None:  # to a disk: while the weights that they share are there
            _offload(made, offloading, level)
    if denoiser is not source:
        wrap: Any = denoiser.dynamo_ctx
        compiled: nn.Module = wrap(made)
        return compiled
    return made


def condition(denoiser: nn.Module) -> tuple[object, ...]:
    """Changes whenever twins of the denoiser are out of date: layers, weights, adapters, attention
    processors, group offloading. Moving it to another device or using it changes nothing.
    """
    found: list[object] = [_group_offloading(denoiser)]
    for name, module in denoiser.named_modules():
        found += [name, id(module), id(getattr(module, "processor", None))]
        found += [(id(p), p._version) for p in module._parameters.values() if p is not None]
        if hasattr(module, "merged_adapters"):
            found.append(repr([getattr(module, key, None) for key in _ADAPTER]))
    return tuple(found)


@contextmanager
def _without_hooks(denoiser: nn.Module) -> Iterator[None]:
    taken = []
    for module in denoiser.modules():
        mine = {key: vars(module).pop(key) for key in HOOKS if key in vars(module)}
        taken.append((module, mine))
    try:
        yield
    finally:
        for module, mine in taken:
            vars(module).update(mine)


@contextmanager
def _loaded(denoiser: nn.Module, offloading: Any) -> Iterator[None]:
    """Weights that are offloaded to a disk are nowhere else."""
    hooks = [] if offloading is None or not offloading.offload_to_disk_path else _hooks(denoiser)
    groups = {id(hook.group): hook.group for hook in hooks}
    for group in groups.values():
        group.onload_()
    try:
        yield
    finally:
        for group in groups.values():
            group.offload_()


def _offload(made: nn.Module, offloading: Any, level: str) -> None:
    from diffusers.hooks import apply_group_offloading

    settings = {field.name: getattr(offloading, field.name) for field in fields(offloading)}
    settings["use_stream"] = settings.pop("stream") is not None
    settings.pop("module_prefix")
    if folder := settings["offload_to_disk_path"]:
        # files are named after groups only, and one that is there is not written again
        Path(folder).mkdir(parents=True, exist_ok=True)
        settings["offload_to_disk_path"] = mkdtemp(prefix=f"{level.replace(':', '-')}-", dir=folder)
    apply_group_offloading(made, **settings)


def check_place(denoiser: nn.Module, levels: Sequence[str], runs_on: torch.device) -> None:
    """Raise `UsageError` for a native level of weights that are not where they are to run: kernels
    pack them for the device that they are on.
    """
    here = next(denoiser.parameters()).device
    native = [level for level in map(Level.parse, levels) if level.backend == "native"]
    packed = [level.name for level in native if not level.is_plain]
    if packed and here.type != runs_on.type:
        raise UsageError(
            f"{packed[0]} can't be made of weights that are offloaded to {here.type} and run on "
            f"{runs_on.type}: apply the plan with the pipeline on {runs_on.type} and call "
            "enable_model_cpu_offload afterwards; offloading by groups takes simulated levels only"
        )


def _group_offloading(denoiser: nn.Module) -> Any:
    """The settings of group offloading, None where there is none."""
    hook = next(_hooks(denoiser), None)
    return None if hook is None else hook.config


def _hooks(denoiser: nn.Module) -> Iterator[Any]:
    return filter(None, map(_hook, denoiser.modules()))


def _hook(module: nn.Module) -> Any:
    registry = vars(module).get("_diffusers_hook")
    return None if registry is None else registry.get_hook("group_offloading")


def load_again(module: nn.Module) -> None:
    """Load what a module's own group holds: making twins, who share it, has put it aside."""
    if (hook := _hook(module)) is not None:
        hook.group.onload_()
