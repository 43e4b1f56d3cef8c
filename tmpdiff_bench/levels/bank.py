"""A denoiser at all its levels: one module tree, in which only layers are exchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from tmpdiff_bench.errors import UsageError, check_known
from tmpdiff_bench.levels.devices import check_runs, is_reference
from tmpdiff_bench.levels.leaf import Layers, Leaf, check_layer, computable, from_disk
from tmpdiff_bench.levels.level import NATIVE, Level
from tmpdiff_bench.levels.native import int8_inputs, native_layer
from tmpdiff_bench.levels.residency import RESIDENCIES, Memory, Store, memory, store
from tmpdiff_bench.levels.simulated import (
    ActivationRounder,
    LowRankLinear,
    Shared,
    SimulatedConv,
    SimulatedLinear,
    largest_inputs,
    smoothers,
)


class LevelBank:
    """One denoiser at several levels: `with bank.at(level): denoiser(...)`.

    `quantized` names the layers (linear and convolution) that levels change. At a level these alone
    stand exchanged in their parents; everything else, and everything outside of the `with`, is the
    denoiser's own. `calibrate` runs the reference on a few representative inputs; it is called
    once, if a level has a low-rank branch. `residency` says where the weights of levels not in use
    are (see `residency`). `memory` tells what all this takes, without taking it.

    Raises:
        UsageError: a level is unknown, named twice, or one that the denoiser's device can't run; a
            layer to quantize is of another kind; a low-rank branch lacks `calibrate`; the residency
            is unknown.
    """

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
        check_known("residency", residency, RESIDENCIES)
        parsed = [Level.parse(name) for name in levels]
        for level in parsed:
            check_runs(level, denoiser)
        self.denoiser, self.quantized, self.residency = denoiser, tuple(quantized), residency
        self.levels = tuple(levels)
        self._places = _places(denoiser, self.quantized)
        # what stands in these places, a row a level entered: the denoiser's own below all others
        self._standing: list[Row] = [[layer for *_, layer in self._places]]
        self._awake: dict[str, Row] = {}
        own = {name: denoiser.get_submodule(name) for name in self.quantized}
        inputs = self._largest_inputs(parsed, calibrate)
        self._stores: dict[str, Store] = {
            level.name: store(
                residency, partial(make_layers, denoiser, level, own, inputs), denoiser
            )
            for level in parsed
            if not is_reference(level, denoiser)
        }

    memory: Callable[..., Memory] = staticmethod(memory)

    def at(self, level: str) -> AbstractContextManager[object]:
        """A context in which the denoiser is at a level; within another one, until its own end.

        Raises:
            UsageError: the level is not one of the bank's. When entered: a layer is no longer the
                one that the levels were made of. When left: a layer was replaced meanwhile; what
                replaced it stays.
        """
        self.check(level)
        return self._at(level)

    def check(self, level: str) -> None:
        """Raise `UsageError` for a level that is not here; unlike `at`, load nothing."""
        check_known("level", level, self.levels)

    def layers(self, level: str) -> Layers:
        """The exchanged layers of a level, by name; none at the reference."""
        self.check(level)
        pairs = zip(self._places, self._row(level), strict=True)
        return {name: leaf for (_, _, name, _), leaf in pairs if isinstance(leaf, Leaf)}

    def _row(self, level: str) -> Row:
        """What stands at a level, place by place, with its weights at hand."""
        if level not in self._stores:
            return self._standing[0]
        if self.residency != "resident" and len(self._standing) == 1:
            for other in self._awake.keys() - {level}:
                self._stores[other].sleep()
                del self._awake[other]
        if level not in self._awake:
            with torch.inference_mode(False):
                layers = self._stores[level].wake()
            self._awake[level] = [layers.get(name, layer) for _, _, name, layer in self._places]
        return self._awake[level]

    @contextmanager
    def _at(self, level: str) -> Iterator[None]:
        before, after = self._standing[-1], self._row(level)
        self._standing.append(after)
        try:
            if strangers := self._exchange(before, after):
                raise UsageError(
                    f"layer {strangers[0]} has been replaced since level {level} was made of it: "
                    "make the levels after changing layers"
                )
            yield
            replaced = self._exchange(after, before)
        except BaseException:  # an interrupt in the midst of it, too
            self._exchange(after, before)
            raise
        finally:
            self._standing.pop()
        if replaced:
            raise UsageError(
                f"layer {replaced[0]} was replaced while level {level} stood in its place: replace "
                "layers between calls of the denoiser"
            )

    def _exchange(self, old: Row, new: Row) -> list[str]:
        """Put `new` where `old` stands; names of layers in whose place something else does."""
        if old is new:
            return []
        strangers = []
        for (modules, key, name, _), before, after in zip(self._places, old, new, strict=True):
            if modules.get(key) is before:
                modules[key] = after
            else:
                strangers.append(name)
        return strangers

    def _largest_inputs(
        self, levels: Sequence[Level], calibrate: Callable[[], object] | None
    ) -> dict[str, Tensor]:
        needing = next((level for level in levels if level.rank), None)
        if needing is None:
            return {}
        if calibrate is None:
            raise UsageError(
                f"level {needing} scales its inputs by how large they get, which a recording "
                "measures on its first samples and nothing here can: take a level without +lr"
            )
        return largest_inputs(self.denoiser, self.quantized, calibrate)


Row = list[nn.Module]
# of a parent: its modules, the key of a layer in them, the layer's name and the layer
Place = tuple[dict[str, nn.Module | None], str, str, nn.Module]


def _places(denoiser: nn.Module, names: Sequence[str]) -> list[Place]:
    """Everywhere that the layers stand: one may have several parents."""
    found = {id(layer): (name, layer) for name in names if (layer := denoiser.get_submodule(name))}
    return [
        (module._modules, key, *found[id(child)])
        for module in denoiser.modules()
        for key, child in module._modules.items()
        if id(child) in found
    ]


def make_layers(
    denoiser: nn.Module, level: Level, layers: dict[str, nn.Module], inputs: dict[str, Tensor]
) -> Layers:
    """A denoiser's layers at a level; those with the same input share its rounding.

    `inputs`: the largest |x| of each input channel, where the level has a low-rank branch.
    Convolutions have none, and are rounded as at the same level without it.
    """
    # inference tensors would be of no use outside of inference mode
    with (
        torch.inference_mode(False),
        from_disk(denoiser, *layers.values()),
        computable(layers.values()),
    ):
        return _make_layers(layers, level, inputs)


def _make_layers(layers: dict[str, nn.Module], level: Level, inputs: dict[str, Tensor]) -> Layers:
    linear = {name: layer for name, layer in layers.items() if isinstance(layer, nn.Linear)}
    smoother = smoothers(linear, inputs, level) if level.rank else {}
    codes, rounder = Shared(int8_inputs), ActivationRounder(level)
    made: Layers = {}
    for name, layer in layers.items():
        check_layer(layer, name)
        if level.backend == NATIVE:
            native = native_layer(layer, level, codes, name)
            if native is not None:
                made[name] = native
        elif not isinstance(layer, nn.Linear):
            made[name] = SimulatedConv(layer, level, rounder)
        elif level.rank:
            made[name] = LowRankLinear(layer, level, smoother[name])
        else:
            made[name] = SimulatedLinear(layer, level, rounder)
    return made
