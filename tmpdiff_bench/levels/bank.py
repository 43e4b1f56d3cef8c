"""A denoiser at all its levels: every parameter that no level changes exists once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from torch import nn

from tmpdiff_bench.errors import UsageError, unknown
from tmpdiff_bench.levels.devices import Device, reason_against
from tmpdiff_bench.levels.level import NATIVE, Level
from tmpdiff_bench.levels.native import int8_inputs, native_layer
from tmpdiff_bench.levels.simulated import (
    ActivationRounder,
    Shared,
    SimulatedConv2d,
    SimulatedLinear,
)


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
        for level in parsed:
            check_runs(level, denoiser)
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
        make = layer_maker(level)
        for name in self.quantized:
            twin.set_submodule(name, make(twin.get_submodule(name), name))
        return twin


def check_runs(level: Level, denoiser: nn.Module) -> None:
    """Raise `UsageError`, with the reason, where the denoiser's device can't run the level."""
    if level.is_plain:
        return
    device = Device.of(next(denoiser.parameters()).device)
    if reason := reason_against(level, device):
        raise UsageError(f"level {level} can't run on {device.name}: {reason}")


def layer_maker(level: Level) -> Callable[[nn.Module, str], nn.Module]:
    """Makes the twins of layers at a level; layers that get the same input share its rounding.

    Raises `UsageError` for a layer that is neither linear nor a convolution.
    """
    if level.backend == NATIVE:
        inputs = Shared(int8_inputs)
        return lambda layer, name: native_layer(layer, level, inputs, name)
    rounder = ActivationRounder(level)

    def simulated(layer: nn.Module, name: str) -> nn.Module:
        if isinstance(layer, nn.Linear):
            return SimulatedLinear(layer, level, rounder)
        if isinstance(layer, nn.Conv2d):
            return SimulatedConv2d(layer, level, rounder)
        kind = type(layer).__name__
        raise UsageError(f"layer {name} is a {kind}: only linear and convolution are")

    return simulated
