"""A denoiser at all its levels: one module tree, in which only layers are exchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tmpdiff_bench.errors import UsageError, check_known
from tmpdiff_bench.levels.devices import check_runs, is_reference
from tmpdiff_bench.levels.leaf import Layers, Leaf, check_layer, computable, from_disk
from tmpdiff_bench.levels.level import NATIVE, Level
from tmpdiff_bench.levels.native import int8_inputs, native_layer
from tmpdiff_bench.levels.own import OwnLevel, called
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
    """One denoiser at several levels: `bank.run(level, denoiser, *args, **kwargs)`.

    `quantized` names the layers (linear and convolution) that levels change. At a level these alone
    stand exchanged in their parents; everything else, and everything outside of a run, is the
    denoiser's own. `own` are levels that are modules of the user's (see `own`), by name.
    `calibrate` runs the reference on a few representative inputs; it is called once, if a level has
    a low-rank branch. `residency` says where the weights of levels not in use are (see
    `residency`). `memory` tells what all this takes, without taking it.

    Raises:
        UsageError: a level is unknown, named twice, or one that the denoiser's device can't run; a
            layer to quantize is of another kind, or quantized already; a module of the user's own
            does not fit; a low-rank branch lacks `calibrate`; the residency is unknown.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        levels: Sequence[str],
        quantized: Sequence[str],
        calibrate: Callable[[], object] | None = None,
        residency: str = "resident",
        own: Mapping[str, nn.Module] | None = None,
    ) -> None:
        if len(set(levels)) != len(levels):
            raise UsageError(f"a level is named twice in {','.join(levels)}")
        check_known("residency", residency, RESIDENCIES)
        given = own or {}
        parsed = [Level.parse(name) for name in levels if name not in given]
        for level in parsed:
            check_runs(level, denoiser)
        self.denoiser, self.quantized, self.residency = denoiser, tuple(quantized), residency
        self.levels = tuple(levels)
        layers = {name: denoiser.get_submodule(name) for name in self.quantized}
        for name, layer in layers.items() if parsed else ():
            check_layer(layer, name)
        self.own = {
            name: OwnLevel.of(name, given[name], denoiser) for name in levels if name in given
        }
        self._places = _places(denoiser, layers, self.own.values())
        # what stands in these places, a row a level entered: the denoiser's own below all others
        self._standing: list[Row] = [[part for *_, part in self._places]]
        self._awake: dict[str, Row] = {
            name: [mine.exchanged.get(id(part), part) for *_, part in self._places]
            for name, mine in self.own.items()
            if mine.exchanged
        }
        self._made = frozenset(self._awake)  # which is there for good
        inputs = self._largest_inputs(parsed, calibrate)
        self._stores: dict[str, Store] = {
            level.name: store(
                residency, partial(make_layers, denoiser, level, layers, inputs), denoiser
            )
            for level in parsed
            if not is_reference(level, denoiser)
        }

    memory: Callable[..., Memory] = staticmethod(memory)

    def run(self, level: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What `call`, a call of the denoiser, returns at a level.

        Raises `UsageError` as `at`.
        """
        self.check(level)
        mine = self.own.get(level)
        if mine is not None and mine.exchanged is None:
            return called(mine.module, *args, **kwargs)
        with self._at(level):
            return call(*args, **kwargs)

    def at(self, level: str) -> AbstractContextManager[object]:
        """A context in which the denoiser is at a level; within another one, until its own end.

        Raises:
            UsageError: the level is not one of the bank's, or runs a module of the user's own as a
                whole, for which there is `run`. When entered: a layer is no longer the one that the
                levels were made of. When left: a layer was replaced meanwhile; what replaced it
                stays.
        """
        self.check(level)
        if level in self.own and self.own[level].exchanged is None:
            raise UsageError(f"level {level} runs a module of its own {self.own[level].words()}")
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
        if level in self._made:
            return self._awake[level]
        if level not in self._stores:
            return self._standing[0]
        if self.residency != "resident" and len(self._standing) == 1:
            for other in self._awake.keys() - {level} - self._made:
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
        for (parts, key, name, _), before, after in zip(self._places, old, new, strict=True):
            if parts.get(key) is before:
                parts[key] = after
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


Row = list[Any]
# of a parent: its modules or tensors, the key of a part in them, the part's name and the part
Place = tuple[dict[str, Any], str, str, Any]


def _places(
    denoiser: nn.Module, quantized: Mapping[str, nn.Module], own: Iterable[OwnLevel]
) -> list[Place]:
    """Everywhere that parts stand which some level exchanges: one may have several parents."""
    watched = {id(layer) for layer in quantized.values()}
    watched |= {part for level in own for part in level.exchanged or ()}
    names = {id(layer): name for name, layer in quantized.items()}
    return [
        (parts, key, names.get(id(part), f"{parent}.{key}".lstrip(".")), part)
        for parent, module in denoiser.named_modules()
        for parts in (module._modules, module._parameters, module._buffers)
        for key, part in parts.items()
        if id(part) in watched
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
