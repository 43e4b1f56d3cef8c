"""Simulated layers: weights and inputs rounded to a format, the reference's arithmetic on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmpdiff_bench.levels.formats import quantize_dequantize
from tmpdiff_bench.levels.leaf import Leaf
from tmpdiff_bench.levels.level import Level


class Shared:
    """A function of a layer's input that is computed once for layers with the same input.

    Query, key and value projections get the same tensor one after the other: the last result is
    kept, and used again while the input is the very same tensor.
    """

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        self._function = function
        self._input: Tensor | None = None
        self._version = -1
        self._output: Any = None

    def __call__(self, x: Tensor) -> Any:
        # a compiled graph shares what is equal by itself; inference tensors do not say when changed
        if torch.compiler.is_compiling() or x.is_inference():
            return self._function(x)
        if x is not self._input or x._version != self._version:
            self._input, self._version = x, x._version
            self._output = self._function(x)
        return self._output


class ActivationRounder:
    """Rounds layer inputs to a level's activation format: tokens (linear) or images (convolution)
    alone, so that samples of a batch do not influence one another.
    """

    def __init__(self, level: Level) -> None:
        form = level.activation or "fp32"
        self.tokens = Shared(lambda x: quantize_dequantize(x, form))
        self.images = Shared(lambda x: quantize_dequantize(x.flatten(1), form).view_as(x))


class SimulatedLinear(Leaf):
    """A linear layer with rounded weights and inputs, computed in the reference's arithmetic."""

    def __init__(self, layer: nn.Linear, level: Level, rounder: ActivationRounder) -> None:
        super().__init__(layer, weight=rounded_weight(layer.weight, level))
        self._rounder = rounder

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(
            self._rounder.tokens(input), self.tensor("weight", input), self.bias_for(input)
        )


class SimulatedConv(Leaf):
    """A convolution with rounded weights and inputs, computed in the reference's arithmetic."""

    layer: Any

    def __init__(self, layer: nn.Module, level: Level, rounder: ActivationRounder) -> None:
        assert isinstance(layer.weight, Tensor)
        super().__init__(layer, weight=rounded_weight(layer.weight, level))
        self._rounder = rounder

    def forward(self, input: Tensor) -> Tensor:
        rounded = self._rounder.images(input)
        output: Tensor = self.layer._conv_forward(
            rounded, self.tensor("weight", input), self.bias_for(input)
        )
        return output


@torch.no_grad()
def rounded_weight(weight: Tensor, level: Level) -> Tensor:
    """A weight (out, ...) rounded per output channel, or per group or block of inputs of it."""
    flat = weight.detach().flatten(1)
    form = level.weight or "fp32"
    whole = form == "nvfp4"  # its outer scale is one number for a weight, as kernels have it
    rounded = quantize_dequantize(flat, form, group=level.weight_group, whole=whole)
    return rounded.view_as(weight)
