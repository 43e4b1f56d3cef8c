"""A denoiser at all its levels: every parameter that no level changes exists once."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmpdiff_bench.errors import UsageError, unknown
from tmpdiff_bench.levels.formats import quantize_dequantize
from tmpdiff_bench.levels.level import Level


class LevelBank:
    """One denoiser at several simulated levels; `bank[level]` is a module to call.

    `quantized` names the submodules (linear and convolution layers) that levels change. Each level
    is a copy of the module tree that shares all parameters and buffers with the reference, except
    the quantized weights, which are rounded once, here.

    Raises:
        UsageError: a level is unknown or named twice, or a layer to quantize is of another kind.
    """

    def __init__(
        self, denoiser: nn.Module, levels: Sequence[str], quantized: Sequence[str]
    ) -> None:
        if len(set(levels)) != len(levels):
            raise UsageError(f"a level is named twice in {','.join(levels)}")
        parsed = [Level.parse(name) for name in levels]
        self.quantized = tuple(quantized)
        self._modules = {
            level.name: denoiser if level.is_plain else self._at(denoiser, level)
            for level in parsed
        }

    def __getitem__(self, level: str) -> nn.Module:
        if level not in self._modules:
            raise unknown("level", level, self._modules)
        return self._modules[level]

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the levels, in the order given."""
        return tuple(self._modules)

    def _at(self, denoiser: nn.Module, level: Level) -> nn.Module:
        shared = [*denoiser.parameters(), *denoiser.buffers()]
        twin = copy.deepcopy(denoiser, {id(tensor): tensor for tensor in shared})
        rounder = ActivationRounder(level)
        for name in self.quantized:
            parent, _, child = name.rpartition(".")
            layer = twin.get_submodule(name)
            setattr(twin.get_submodule(parent), child, quantized_layer(layer, level, rounder, name))
        return twin


class ActivationRounder:
    """Rounds layer inputs to a level's activation format.

    Query, key and value projections get the same tensor one after the other: the last rounding is
    kept, and used again while the input is the very same tensor.
    """

    def __init__(self, level: Level) -> None:
        self._format = level.activation or "fp32"
        self._input: Tensor | None = None
        self._version = -1
        self._output: Tensor | None = None

    def __call__(self, x: Tensor, axis: int | tuple[int, ...] = -1) -> Tensor:
        if self._output is None or x is not self._input or x._version != self._version:
            self._input, self._version = x, x._version
            if isinstance(axis, tuple):
                flat = quantize_dequantize(x.flatten(min(axis)), self._format)
                self._output = flat.view_as(x)
            else:
                self._output = quantize_dequantize(x, self._format, axis=axis)
        return self._output


class SimulatedLinear(nn.Module):
    """A linear layer with rounded weights and inputs, computed in the reference's arithmetic."""

    def __init__(self, layer: nn.Linear, level: Level, rounder: ActivationRounder) -> None:
        super().__init__()
        self.weight = rounded_weight(layer.weight, level)
        self.bias = layer.bias
        self._rounder = rounder

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self._rounder(x), self.weight, self.bias)


class SimulatedConv2d(nn.Module):
    """A convolution with rounded weights and inputs, computed in the reference's arithmetic."""

    def __init__(self, layer: nn.Conv2d, level: Level, rounder: ActivationRounder) -> None:
        super().__init__()
        self._layer = copy.copy(layer)
        self._layer._parameters = dict(layer._parameters)
        self._layer.weight = rounded_weight(layer.weight, level)
        self._rounder = rounder

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self._layer(self._rounder(x, axis=(1, 2, 3)))
        return output


def quantized_layer(
    layer: nn.Module, level: Level, rounder: ActivationRounder, name: str
) -> nn.Module:
    """The simulated twin of a linear or convolution layer."""
    if isinstance(layer, nn.Linear):
        return SimulatedLinear(layer, level, rounder)
    if isinstance(layer, nn.Conv2d):
        return SimulatedConv2d(layer, level, rounder)
    raise UsageError(f"layer {name} is a {type(layer).__name__}: only linear and convolution are")


@torch.no_grad()
def rounded_weight(weight: Tensor, level: Level) -> nn.Parameter:
    """A weight (out, ...) rounded per output channel, or per group of inputs of it."""
    flat = weight.detach().flatten(1)
    rounded = quantize_dequantize(flat, level.weight or "fp32", group=level.weight_group)
    return nn.Parameter(rounded.view_as(weight), requires_grad=False)
