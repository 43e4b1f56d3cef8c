"""What stands in the place of a layer while a level runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tmpdiff_bench.errors import UsageError

QUANTIZABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_backward_hooks", "_backward_pre_hooks"),
)


class Leaf(nn.Module):
    """A layer at a level, itself in no module tree but while the level runs.

    Its tensors stand in `own`, and its parameters are the layer's: offloading, which moves those
    that it finds in the tree, and modules that ask others for their dtype, see no level. `own`
    follows inputs to a device. Hooks of the layer, bias and all other attributes are the layer's
    own objects.
    """

    layer: nn.Module
    own: dict[str, Tensor]

    def __init__(self, layer: nn.Module, **own: Tensor | None) -> None:
        super().__init__()
        mine = vars(self)
        mine["layer"] = layer
        mine["own"] = {name: tensor for name, tensor in own.items() if tensor is not None}
        mine |= {name: vars(layer)[name] for name in ("_parameters", "_buffers")}
        mine |= {name: vars(layer)[name] for name in _HOOKS}  # for graphs, which trace our own call
        self.training = layer.training

    def tensor(self, name: str, x: Tensor) -> Tensor:
        """One of `own`, where `x` is."""
        found = self.own[name]
        if found.device != x.device:
            found = self.own[name] = found.to(x.device)
        return found

    def bias_for(self, x: Tensor) -> Tensor | None:
        """The layer's own bias, where `x` is."""
        bias = self.layer.bias
        if bias is None:
            return None
        assert isinstance(bias, Tensor)
        # stored in another dtype where diffusers' layerwise casting keeps it so
        return bias if bias.device == x.device and bias.dtype == x.dtype else bias.to(x)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        layer = self.layer
        if torch.compiler.is_compiling() or not is_hooked(layer):
            return super().__call__(*args, **kwargs)
        # hooks are the layer's, and are given the layer: its own call runs them around this forward
        holder, name = forward_of(layer)
        before = holder.get(name)
        holder[name] = self.forward
        try:
            return nn.Module._call_impl(layer, *args, **kwargs)
        finally:
            if before is None:
                del holder[name]
            else:
                holder[name] = before

    def __getattr__(self, name: str) -> Any:
        own: dict[str, Tensor] = vars(self)["own"]
        return own[name] if name in own else getattr(vars(self)["layer"], name)


Layers = dict[str, Leaf]
Make = Callable[[], Layers]


def is_hooked(layer: nn.Module) -> bool:
    """Whether more than its class's `forward` runs at a call of a layer."""
    attributes = vars(layer)
    return (
        "forward" in attributes
        or any(attributes[name] for name in _HOOKS)
        or nn.modules.module._has_any_global_hook()
    )


def check_layer(layer: nn.Module, name: str) -> None:
    """Raise `UsageError` for a layer that no other can stand for."""
    kind = next((kind for kind in QUANTIZABLE if isinstance(layer, kind)), None)
    if kind is None:
        raise UsageError(
            f"layer {name} is a {type(layer).__name__}: only linear and convolution are"
        )
    if type(layer).forward is not kind.forward or type(layer.weight) not in (Tensor, nn.Parameter):
        raise UsageError(
            f"layer {name} ({type(layer).__name__}, {type(layer.weight).__name__}) has arithmetic "
            "of its own, as quantized models do: name the model as a level of your own "
            "(modules=, --level), beside such levels only, or leave the layer out of quantized="
        )
    if getattr(kind.forward, "__globals__", {}).get("__name__") != kind.__module__:
        raise UsageError(
            f"{kind.__name__}.forward is replaced by another function, which levels would pass by"
        )
    forward_of(layer, name)


def forward_of(layer: nn.Module, name: str = "") -> tuple[dict[str, Any], str]:
    """Where a layer's own `forward` stands, below what diffusers' hooks have laid around it: a
    dictionary and the key in it.

    Raises:
        UsageError: it is another function, by which a level would not run.
    """
    attributes = vars(layer)
    outermost, registry = attributes.get("forward"), attributes.get("_diffusers_hook")
    references = registry._fn_refs if registry is not None else []
    if outermost is None or _is_own(outermost, layer):
        return attributes, "forward"
    if references and _is_around(outermost, references[-1]):
        inner = vars(references[0])
        key = "forward" if inner["original_forward"] is None else "original_forward"
        if _is_own(inner[key], layer):
            return inner, key
    raise UsageError(
        f"the forward of layer {name or type(layer).__name__} is replaced by another function, "
        "which levels would pass by: use forward hooks, or leave the layer out of quantized="
    )


def _is_own(forward: Any, layer: nn.Module) -> bool:
    bound = getattr(forward, "__self__", None) is layer
    return bound and getattr(forward, "__func__", None) is type(layer).forward


def _is_around(forward: Any, reference: Any) -> bool:
    """Whether `forward` is what `HookRegistry.register_hook` made for the reference."""
    cells = getattr(getattr(forward, "func", None), "__closure__", None) or ()
    return any(cell.cell_contents is reference for cell in cells)


@contextmanager
def from_disk(*modules: nn.Module) -> Iterator[None]:
    """Weights in memory that group offloading keeps on a disk, and nowhere else between calls."""
    with ExitStack() as after:
        inside = (child for module in modules for child in module.modules())
        groups = (hook.group for hook in _hooks(inside, "group_offloading"))
        for group in dict.fromkeys(groups):
            if group.offload_to_disk_path and Path(group.safetensors_file_path).exists():
                found = load_file(group.safetensors_file_path)
                for name, tensor in group.key_to_tensor.items():
                    after.callback(setattr, tensor, "data", tensor.data)
                    tensor.data = found[name]
        yield


@contextmanager
def computable(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Weights that layerwise casting stores in another dtype, in the one that they compute in."""
    with ExitStack() as after:
        for hook, layer in ((hook, x) for x in layers for hook in _hooks([x], "layerwise_casting")):
            after.callback(layer.to, next(layer.parameters()).dtype)
            layer.to(hook.compute_dtype)
        yield


def compute_dtype(module: nn.Module) -> torch.dtype:
    """What a module computes in: its weights may be stored in another dtype."""
    for hook in _hooks(module.modules(), "layerwise_casting"):
        found: torch.dtype = hook.compute_dtype
        return found
    return next(p.dtype for p in module.parameters() if p.is_floating_point())


def _hooks(modules: Iterable[nn.Module], name: str) -> Iterator[Any]:
    """The hooks of diffusers of a name on modules."""
    for module in modules:
        registry = vars(module).get("_diffusers_hook")
        hook = None if registry is None else registry.get_hook(name)
        if hook is not None:
            yield hook
