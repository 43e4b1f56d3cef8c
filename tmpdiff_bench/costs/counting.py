"""Counting a network's work layer by layer, from shapes alone.

A forward on the meta device computes nothing and takes no memory. Counted are linear and
convolution layers, attention and norms; what lies between them (activations, modulation, residual
sums, rotations) is taken as fused into these, as compilers do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, RMSNorm)


@dataclass(frozen=True)
class Operation:
    """One layer's work in one call of the network.

    `flops` counts a multiply-add as two; `inputs`, `weights` and `outputs` are numbers of elements.
    `rows`, `fan_in` and `fan_out` are the sizes of the matrix product that a linear or convolution
    layer is, zero otherwise. `quantized`: levels change this layer. `first_use`: no layer before it
    read the same input, so that a level has to quantize it.
    """

    name: str
    kind: Literal["linear", "convolution", "attention", "norm"]
    flops: int
    inputs: int
    weights: int
    outputs: int
    rows: int = 0
    fan_in: int = 0
    fan_out: int = 0
    quantized: bool = False
    first_use: bool = False


@torch.no_grad()
def count_operations(
    network: nn.Module, inputs: Mapping[str, Any], quantized: Collection[str]
) -> list[Operation]:
    """The operations of one call, in order of execution; `quantized` names layers."""
    counter = _Counter(frozenset(quantized))
    handles = [
        module.register_forward_hook(counter.hook(name))
        for name, module in network.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d, *_NORMS))
    ]
    try:
        with counter:
            network(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return counter.operations


class _Counter(TorchFunctionMode):
    def __init__(self, quantized: frozenset[str]) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self._quantized = quantized
        self._last_input: Tensor | None = None  # held, so that its identity is not reused

    def hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            self.operations.append(self._layer(name, module, args[0], output))

        return record

    def _layer(self, name: str, module: nn.Module, x: Tensor, y: Tensor) -> Operation:
        weights = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        if isinstance(module, _NORMS):
            return Operation(name, "norm", 0, x.numel(), weights, y.numel())
        kind: Literal["linear", "convolution"] = "linear"
        weight = module.weight
        assert isinstance(weight, Tensor)
        channels = y.shape[-1]
        if isinstance(module, nn.Conv2d):
            kind, channels = "convolution", y.shape[1]
        rows, fan_in = y.numel() // channels, weight.numel() // channels
        quantized = name in self._quantized
        first_use = quantized and x is not self._last_input
        if quantized:
            self._last_input = x
        return Operation(
            name,
            kind,
            2 * rows * fan_in * channels,
            x.numel(),
            weights,
            y.numel(),
            rows,
            fan_in,
            channels,
            quantized,
            first_use,
        )

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value = _attended(*args, **kwargs)
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        width = query.shape[-1] + value.shape[-1]
        flops = 2 * (query.numel() // query.shape[-1]) * key.shape[-2] * width
        read = query.numel() + key.numel() + value.numel()
        self.operations.append(Operation("", "attention", flops, read, 0, output.numel()))
        return output


def _attended(
    query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the arguments of attention, those that it multiplies."""
    return query, key, value
