"""Levels that are a module of the user's own: a quantized checkpoint in the place of the denoiser.

Where its tree is the denoiser's, layers of the same name are exchanged, and tensors that differ;
all else stays the denoiser's. Where it isn't, the module runs as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.levels.leaf import Leaf, compute_dtype, is_hooked

# settings that say how weights are stored, or where they came from, and not what is computed
_NO_SETTINGS = ("quantization_config",)


@dataclass(frozen=True)
class OwnLevel:
    """A module of the user's own, and what of a denoiser it stands for.

    `exchanged`: by the id of each layer or tensor of the denoiser, what takes its place; None where
    the module runs as a whole, for `reason`.
    """

    name: str
    module: nn.Module
    exchanged: dict[int, Any] | None
    reason: str = ""

    @classmethod
    def of(cls, name: str, module: nn.Module, denoiser: nn.Module) -> OwnLevel:
        """A level of a denoiser.

        Raises:
            UsageError: the module computes in another dtype than the denoiser.
        """
        if module is denoiser:
            return cls(name, module, {})
        mine, theirs = compute_dtype(denoiser), compute_dtype(module)
        if mine != theirs:
            raise UsageError(
                f"level {name} computes in {str(theirs).removeprefix('torch.')}, the pipeline in "
                f"{str(mine).removeprefix('torch.')}: load both in one dtype (--dtype)"
            )
        try:
            found = {id(old): new for old, new in _pairs("", denoiser, module)}
        except _DifferentError as error:
            return cls(name, module, None, str(error))
        return cls(name, module, found)

    def words(self) -> str:
        """What is exchanged, in a few words."""
        if self.exchanged is None:
            return f"as a whole: {self.reason}"
        return f"{len(self.exchanged)} layers exchanged"


class OwnLeaf(Leaf):
    """A layer of the user's own that stands for the denoiser's, whose hooks run around it."""

    module: nn.Module

    def __init__(self, layer: nn.Module, module: nn.Module) -> None:
        super().__init__(layer)
        vars(self)["module"] = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return called(self.module, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        module = vars(self)["module"]
        return getattr(module if hasattr(module, name) else vars(self)["layer"], name)


def called(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What a module of the user's own returns, moved to its inputs: offloading doesn't know it."""
    given = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
    first = next(tensors_of(module), None)
    if first is not None and given is not None and first.device != given.device:
        module.to(given.device)
    return module(*args, **kwargs)


def own_bytes(module: nn.Module, denoiser: nn.Module) -> int:
    """Bytes of a module that are not the denoiser's."""
    shared = {id(tensor) for tensor in tensors_of(denoiser)}
    own = {id(tensor): tensor for tensor in tensors_of(module) if id(tensor) not in shared}
    return sum(map(stored_bytes, own.values()))


def stored_bytes(tensor: Tensor) -> int:
    """Bytes that a tensor takes, quantized or not."""
    return sum(part.nbytes for part in stored(tensor))


def stored(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors that one is, quantized or not."""
    if is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            yield from stored(getattr(tensor, name))
    else:
        yield tensor.as_subclass(Tensor)


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers."""
    yield from module.parameters()
    yield from module.buffers()


class _DifferentError(Exception):
    """Two trees can't be paired; says where."""


def _pairs(path: str, mine: nn.Module, theirs: nn.Module) -> Iterator[tuple[Any, Any]]:
    """What of the denoiser's differs, and what takes its place. Raises `_DifferentError`."""
    if _is_adapter(mine) and not _is_adapter(theirs):
        yield from _pairs(f"{path}.base_layer", cast(nn.Module, mine.base_layer), theirs)
        return
    if not mine._modules:
        if type(mine) is not type(theirs) or theirs._modules or not _same_tensors(mine, theirs):
            yield mine, OwnLeaf(mine, theirs)
        return
    where = path.lstrip(".") or "the denoiser"
    if type(mine) is not type(theirs):
        raise _DifferentError(
            f"{where} is a {type(theirs).__name__} there, a {type(mine).__name__} here"
        )
    if mine._modules.keys() != theirs._modules.keys():
        raise _DifferentError(f"{where} has other layers")
    if not path and settings(mine) != settings(theirs):
        raise _DifferentError("its settings are others")
    if type(_processor(mine)) is not type(_processor(theirs)):
        raise _DifferentError(f"{where} has another attention processor")
    if is_hooked(theirs) or "_hf_hook" in vars(theirs):
        raise _DifferentError(f"{where} has hooks of its own")
    for kind in ("_parameters", "_buffers"):
        own, other = vars(mine)[kind], vars(theirs)[kind]
        if own.keys() != other.keys():
            raise _DifferentError(f"{where} has other tensors")
        for key, tensor in own.items():
            if (tensor is None) != (other[key] is None):
                raise _DifferentError(f"{where} has other tensors")
            if tensor is not None and not _same(tensor, other[key]):
                yield tensor, other[key]
    for key, child in mine._modules.items():
        other_child = theirs._modules[key]
        if (child is None) != (other_child is None):
            raise _DifferentError(f"{where} has other layers")
        if child is not None and other_child is not None:
            yield from _pairs(f"{path}.{key}", child, other_child)


def _is_adapter(module: nn.Module) -> bool:
    return isinstance(getattr(module, "base_layer", None), nn.Module)


def _processor(module: nn.Module) -> Any:
    return vars(module).get("processor", module._modules.get("processor"))


def settings(module: nn.Module) -> dict[str, Any]:
    """What a diffusers module was made with."""
    config = dict(getattr(module, "config", {}))
    return {k: v for k, v in config.items() if k[:1] != "_" and k not in _NO_SETTINGS}


def _same_tensors(mine: nn.Module, theirs: nn.Module) -> bool:
    """Whether two layers of one class are the same: tensors, and hooks that change what is run."""
    if is_hooked(theirs):
        return False
    for kind in ("_parameters", "_buffers"):
        own, other = vars(mine)[kind], vars(theirs)[kind]
        if own.keys() != other.keys():
            return False
        for key, tensor in own.items():
            if (tensor is None) != (other[key] is None):
                return False
            if tensor is not None and not _same(tensor, other[key]):
                return False
    return True


def _same(mine: Tensor, theirs: Tensor) -> bool:
    plain = all(type(tensor) in (Tensor, nn.Parameter) for tensor in (mine, theirs))
    if not plain or mine.dtype != theirs.dtype or mine.shape != theirs.shape:
        return mine is theirs
    return mine is theirs or torch.equal(mine, theirs.to(mine.device))
