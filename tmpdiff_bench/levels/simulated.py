"""Simulated layers: weights and inputs rounded to a format, the reference's arithmetic on them.

With a low-rank branch, what coarse weights lose most is kept in a few singular vectors. SVDQuant
(Li et al. 2024, arXiv 2411.05007): input channels are scaled so that outliers move from activations
into the weight, the leading singular vectors of the scaled weight are kept in the reference's
dtype, and only the rest of it is rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmpdiff_bench.errors import UsageError
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


@torch.no_grad()
def largest_inputs(
    denoiser: nn.Module, names: tuple[str, ...], run: Callable[[], object]
) -> dict[str, Tensor]:
    """The largest |x| of each input channel (in,) of linear layers, over all that `run` computes.

    Raises:
        UsageError: a layer was not used.
    """
    found: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, Tensor]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
            x = inputs[0] if inputs else named["input"]
            now = x.detach().flatten(0, -2).abs().amax(0)
            found[name] = torch.maximum(found[name], now) if name in found else now

        return hook

    layers = {name: denoiser.get_submodule(name) for name in names}
    linear = {name: layer for name, layer in layers.items() if isinstance(layer, nn.Linear)}
    hooks = [
        layer.register_forward_pre_hook(watch(name), with_kwargs=True)
        for name, layer in linear.items()
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    if unused := [name for name in linear if name not in found]:
        raise UsageError(f"the calibration run does not use layer {unused[0]}")
    return found


class Smoother:
    """Divides inputs by `factors` (in,), and gives them so and rounded; layers share it."""

    def __init__(self, factors: Tensor, level: Level) -> None:
        self.factors = factors
        self._format = level.activation or "fp32"
        self._both = Shared(self._smooth)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        both: tuple[Tensor, Tensor] = self._both(x)
        return both

    def _smooth(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.factors.device != x.device:
            self.factors = self.factors.to(x.device)
        smooth = x / self.factors
        return smooth, quantize_dequantize(smooth, self._format)


def smoothers(
    layers: Mapping[str, nn.Linear], inputs: Mapping[str, Tensor], level: Level
) -> dict[str, Smoother]:
    """A smoother for each layer. Layers with equal `inputs` get the same tensor, as query, key and
    value do, and share one.
    """
    groups: dict[tuple[float, ...], list[str]] = {}
    for name in layers:
        groups.setdefault(tuple(inputs[name].tolist()), []).append(name)
    found = dict[str, Smoother]()
    for names in groups.values():
        weights = torch.cat([layers[name].weight.detach() for name in names])
        found |= dict.fromkeys(names, Smoother(smoothing(inputs[names[0]], weights), level))
    return found


def smoothing(inputs: Tensor, weight: Tensor) -> Tensor:
    """Factors (in,) sqrt(max |x| / max |w|) that make the ranges of scaled inputs and scaled weight
    (out, in) equal, channel by channel: migration strength 0.5. A channel without any is left.
    """
    factors = (inputs / weight.abs().amax(0)).sqrt()
    return torch.where(factors.isfinite() & (factors > 0), factors, 1.0)


class LowRankLinear(Leaf):
    """A simulated linear layer whose weight, scaled, is two thin matrices plus a rounded rest."""

    def __init__(self, layer: nn.Linear, level: Level, smoother: Smoother) -> None:
        weight = layer.weight.detach()
        smooth = weight * smoother.factors
        rank = min(level.rank or 0, *weight.shape)
        # in double precision: a singular vector of a small gap would otherwise hang on last bits
        left, values, right = torch.linalg.svd(smooth.double(), full_matrices=False)
        up = (left[:, :rank] * values[:rank]).to(weight.dtype)
        down = right[:rank].to(weight.dtype)
        rest = rounded_weight(smooth - up @ down, level)
        super().__init__(layer, weight=rest, up=up.contiguous(), down=down.contiguous())
        self._inputs = smoother

    def forward(self, input: Tensor) -> Tensor:
        smooth, rounded = self._inputs(input)
        low_rank = F.linear(F.linear(smooth, self.tensor("down", input)), self.tensor("up", input))
        return F.linear(rounded, self.tensor("weight", input), self.bias_for(input)).add_(low_rank)
