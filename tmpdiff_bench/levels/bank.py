"""A denoiser at all its levels: every parameter that no level changes exists once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from tmpdiff_bench.errors import UsageError, unknown
from tmpdiff_bench.levels.devices import check_runs, is_reference
from tmpdiff_bench.levels.level import NATIVE, Level
from tmpdiff_bench.levels.lowrank import LowRankLinear, largest_inputs, smoothers
from tmpdiff_bench.levels.memory import RESIDENCIES, Memory, memory
from tmpdiff_bench.levels.native import int8_inputs, native_layer
from tmpdiff_bench.levels.residency import Derived, Idle, Layers, Offloaded, Store
from tmpdiff_bench.levels.simulated import (
    ActivationRounder,
    Shared,
    SimulatedConv2d,
    SimulatedLinear,
)


class LevelBank:
    """One denoiser at several levels; `bank[level]` is a module to call.

    `quantized` names the submodules (linear and convolution layers) that levels change. Each level
    is a copy of the module tree that shares all parameters and buffers with the reference, except
    the weights of these layers. `calibrate` runs the reference on a few representative inputs; it
    is called once, if a level has a low-rank branch. `residency` says where the weights of levels
    not in use are (see `residency`); other than "resident", a level works until another one is
    asked for. `memory` tells what all this takes, without taking it.

    Raises:
        UsageError: a level is unknown, named twice, or one that the denoiser's device can't run; a
            layer to quantize is of another kind; a low-rank branch lacks `calibrate`; the residency
            is unknown.
    """

    residency = "resident"

    def __init__(
        self,
        denoiser: nn.Module,
        levels: Sequence[str],
        quantized: Sequence[str],
        calibrate: Callable[[], object] | None = None,
        residency: str = "resident",
    ) -> None:
        if len(set(levels)) != len(levels):
            raise UsageError(f"a level is named twice in {','.join(levels)}")
        if residency not in RESIDENCIES:
            raise unknown("residency", residency, RESIDENCIES)
        parsed = [Level.parse(name) for name in levels]
        for level in parsed:
            check_runs(level, denoiser)
        self.quantized, self.residency = tuple(quantized), residency
        self._awake: str | None = None
        self._stores: dict[str, Store] = {}
        inputs = self._largest_inputs(denoiser, parsed, calibrate)
        self._modules = {
            level.name: denoiser
            if is_reference(level, denoiser)
            else self._at(denoiser, level, inputs)
            for level in parsed
        }

    memory: Callable[..., Memory] = staticmethod(memory)

    def __getitem__(self, level: str) -> nn.Module:
        self.check(level)
        if self.residency != "resident" and level in self._stores and level != self._awake:
            self._switch(level)
        return self._modules[level]

    def check(self, level: str) -> None:
        """Raise `UsageError` for a level that is not here; unlike `bank[level]`, load nothing."""
        if level not in self._modules:
            raise unknown("level", level, self._modules)

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the levels, in the order given."""
        return tuple(self._modules)

    def _at(self, denoiser: nn.Module, level: Level, inputs: dict[str, Tensor]) -> nn.Module:
        shared = [*denoiser.parameters(), *denoiser.buffers()]
        twin = copy.deepcopy(denoiser, {id(tensor): tensor for tensor in shared})
        make = partial(make_layers, denoiser, level, self.quantized, inputs)
        if self.residency == "resident":
            _put(twin, make())
            return twin
        derive = self.residency == "derive"
        self._stores[level.name] = Derived(make) if derive else Offloaded(make(), denoiser)
        _put(twin, {name: Idle(level.name) for name in self.quantized})
        return twin

    def _switch(self, level: str) -> None:
        if self._awake is not None:
            _put(
                self._modules[self._awake],
                {name: Idle(self._awake) for name in self.quantized},
            )
            self._stores[self._awake].sleep()
        self._awake = level
        _put(self._modules[level], self._stores[level].wake())

    def _largest_inputs(
        self,
        denoiser: nn.Module,
        levels: Sequence[Level],
        calibrate: Callable[[], object] | None,
    ) -> dict[str, Tensor]:
        needing = next((level for level in levels if level.rank), None)
        if needing is None:
            return {}
        if calibrate is None:
            raise UsageError(
                f"level {needing} scales its inputs by how large they get: give LevelBank "
                "`calibrate`, a function that runs the denoiser on a few representative inputs"
            )
        return largest_inputs(denoiser, self.quantized, calibrate)


def make_layers(
    denoiser: nn.Module, level: Level, names: Sequence[str], inputs: dict[str, Tensor]
) -> Layers:
    """The twins of a denoiser's layers at a level; those with the same input share its rounding.

    `inputs`: the largest |x| of each input channel, where the level has a low-rank branch.
    Convolutions have none, and are rounded as at the same level without it.
    """
    layers = {name: denoiser.get_submodule(name) for name in names}
    linear = {name: layer for name, layer in layers.items() if isinstance(layer, nn.Linear)}
    smoother = smoothers(linear, inputs, level) if level.rank else {}
    codes, rounder = Shared(int8_inputs), ActivationRounder(level)
    made: Layers = {}
    for name, layer in layers.items():
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            kind = type(layer).__name__
            raise UsageError(f"layer {name} is a {kind}: only linear and convolution are")
        if level.backend == NATIVE:
            made[name] = native_layer(layer, level, codes, name)
        elif isinstance(layer, nn.Conv2d):
            made[name] = SimulatedConv2d(layer, level, rounder)
        elif level.rank:
            made[name] = LowRankLinear(layer, level, smoother[name])
        else:
            made[name] = SimulatedLinear(layer, level, rounder)
    return made


def _put(module: nn.Module, layers: Layers) -> None:
    for name, layer in layers.items():
        module.set_submodule(name, layer)
