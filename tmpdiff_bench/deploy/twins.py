"""A denoiser at another level, made from one that is in use: compiled, offloaded, with a LoRA."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from torch import nn

from tmpdiff_bench.levels import Level, LevelBank

# What accelerate and diffusers leave on modules that they offload. It is bound to these modules,
# and its own references lead to other models: a copy must not follow them.
_HOOKS = ("forward", "_old_forward", "_hf_hook", "_diffusers_hook")
_ADAPTER = ("active_adapters", "disable_adapters", "merged_adapters", "scaling")
_DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def eager(denoiser: nn.Module) -> nn.Module:
    """The module itself where `torch.compile` has wrapped it."""
    inner: nn.Module = getattr(denoiser, "_orig_mod", denoiser)
    return inner


def changes_nothing(level: str, denoiser: nn.Module) -> bool:
    """Whether the denoiser is at the level already: its own dtype rounds nothing more."""
    parsed = Level.parse(level)
    dtype = next(p.dtype for p in denoiser.parameters() if p.is_floating_point())
    return parsed.is_plain or parsed.base == _DTYPES.get(dtype)


def twin(denoiser: nn.Module, level: str, quantized: Sequence[str]) -> nn.Module:
    """The denoiser at a level: compiled and offloaded by groups where the denoiser is.

    Raises `UsageError` as `LevelBank`.
    """
    source = eager(denoiser)
    with _without_hooks(source):
        made = LevelBank(source, (level,), quantized)[level]
    for name, module in source.named_modules():
        if module._compiled_call_impl is not None:
            made.get_submodule(name).compile()
    _offload_alike(source, made)
    if denoiser is not source:
        wrap: Any = denoiser.dynamo_ctx
        compiled: nn.Module = wrap(made)
        return compiled
    return made


def condition(denoiser: nn.Module) -> tuple[object, ...]:
    """Changes whenever twins of the denoiser are out of date: layers, weights, adapters, attention
    processors. Moving it to another device or using it changes nothing.
    """
    found: list[object] = []
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
        mine = {key: vars(module).pop(key) for key in _HOOKS if key in vars(module)}
        taken.append((module, mine))
    try:
        yield
    finally:
        for module, mine in taken:
            vars(module).update(mine)


def _offload_alike(source: nn.Module, made: nn.Module) -> None:
    config = _group_offloading(source)
    if config is None:
        return
    from diffusers.hooks import apply_group_offloading

    settings = {field.name: getattr(config, field.name) for field in fields(config)}
    settings["use_stream"] = settings.pop("stream") is not None
    settings.pop("module_prefix")
    apply_group_offloading(made, **settings)


def _group_offloading(denoiser: nn.Module) -> Any:
    """The settings of group offloading, None where there is none."""
    for module in denoiser.modules():
        registry = vars(module).get("_diffusers_hook")
        hook = registry.get_hook("group_offloading") if registry is not None else None
        if hook is not None:
            return hook.config
    return None
