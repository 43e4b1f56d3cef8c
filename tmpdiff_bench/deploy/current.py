"""The levels of a pipeline's denoisers, made anew whenever these have changed."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from tmpdiff_bench.deploy.followed import Followed, sums
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.experiment import check_own_names
from tmpdiff_bench.levels import Level, LevelBank
from tmpdiff_bench.levels.devices import is_reference
from tmpdiff_bench.levels.leaf import check_layer, compute_dtype
from tmpdiff_bench.levels.level import NATIVE
from tmpdiff_bench.pipelines.layers import resolve_layers
from tmpdiff_bench.pipelines.loop import Run, denoisers, eager, turn
from tmpdiff_bench.pipelines.own import OwnModules


class CurrentLevels:
    """Levels of whatever denoisers a pipeline has, by their places, in the state that they are in.

    `banks` are those of the last look at the pipeline.

    Raises:
        UsageError: as `LevelBank`, `resolve_layers` and `denoisers`; a denoiser that can't be right
            together with a plan.
    """

    def __init__(
        self,
        pipe: Any,
        names: Sequence[str],
        modules: Mapping[str, Any],
        quantized: Sequence[str] | None,
        residency: str,
    ) -> None:
        check_own_names(modules)
        # a plan names some of the modules that a user has; the others stay away
        self.modules = {name: modules[name] for name in names if name in modules}
        self._levels = [Level.parse(name) for name in names if name not in modules]
        self._own = OwnModules(self.modules, tuple(denoisers(pipe)))
        if quantized is not None and not self._levels:
            raise UsageError(
                "quantized= has no effect: levels of your own change what they are made of"
            )
        self.names, self.residency = tuple(names), residency
        self.quantized = None if quantized is None else tuple(quantized)
        self.banks: dict[str, LevelBank] = {}
        self._followed: dict[str, Followed] = {}
        self._seen: dict[str, _Seen] = {}
        self._runs_on = "cpu"
        self.refresh(pipe)

    def serve(
        self,
        names: Sequence[str],
        modules: Mapping[str, Any] | None,
        quantized: Sequence[str] | None,
        residency: str,
    ) -> bool:
        """Whether these are the levels of a plan with such `names` too."""
        layers = None if quantized is None else tuple(quantized)
        given = modules or {}
        same = all(given.get(name, mine) is mine for name, mine in self.modules.items())
        others = any(name in given for name in {*names} - {*self.modules})
        followed = not any(one.is_left() for one in self._followed.values())
        return (
            {*names} <= {*self.names}
            and (layers, residency) == (self.quantized, self.residency)
            and (same and not others and followed)
        )

    def refresh(self, pipe: Any) -> None:
        """Look at the pipeline again. Raises `UsageError` as the class."""
        there = {place: eager(module) for place, module in denoisers(pipe).items()}
        for place in self.banks.keys() - there.keys():
            del self.banks[place], self._seen[place]
            self._followed.pop(place, None)
        for place, denoiser in there.items():
            here = next(denoiser.parameters()).device
            self._runs_on = torch.device(getattr(pipe, "_execution_device", here)).type
            self._look(place, denoiser)

    def run(self, place: str, level: str, run: Run, args: Any, kwargs: Any) -> Any:
        """What a call of a denoiser returns at a level, in a run; what was changed since the run
        began counts, but for what `check_followed` refuses.
        """
        seen = self._seen[place]
        if seen.is_outdated():
            self._look(place, seen.denoiser)
        return self.banks[place].run(level, run, *args, **kwargs)

    def check_followed(self) -> None:
        """Raise `UsageError` where a run changed what `run` doesn't see since the last look."""
        for place, seen in self._seen.items():
            with turn(seen.denoiser):
                if not seen.is_outdated():  # after its last call
                    self._check(place, seen)
                if place in self._followed:
                    self._followed[place].check()

    def _names(self, denoiser: nn.Module) -> tuple[str, ...]:
        """Of the layers that levels change, but for those of the user's own."""
        return resolve_layers(denoiser, self.quantized) if self._levels else ()

    def _check(self, place: str, seen: _Seen) -> None:
        seen.check()
        if self._names(seen.denoiser) != seen.names:
            raise UsageError(
                f"layers were added to the {place} during the call, and ran as they are: add them "
                "between calls"
            )
        if seen.is_written():
            raise UsageError(
                f"weights of the {place} were written to by .data during the call, as fusing a "
                "LoRA does, where levels can't follow: write to them between calls"
            )

    def _look(self, place: str, denoiser: nn.Module) -> None:
        with turn(denoiser):
            check_denoiser(place, denoiser)
            unmerge_disabled(denoiser)
            followed = self._followed.get(place)
            if followed is not None and followed.denoiser is denoiser:
                followed.check()
            names = self._names(denoiser)
            seen = _Seen(denoiser, names, self._kernels(denoiser))
            tree = [id(module) for module in denoiser.modules()] if self.modules else []
            seen.mark = (*seen.mark, tree)
            if place not in self._seen or self._seen[place].mark != seen.mark:
                self.banks[place] = self._bank(place, denoiser, names)
                if self.modules and (followed is None or followed.denoiser is not denoiser):
                    own = self.banks[place].own.values()
                    self._followed[place] = Followed(place, denoiser, own)
            self._seen[place] = seen

    def _kernels(self, denoiser: nn.Module) -> str | None:
        """The device whose kernels levels need, if they need any."""
        native = any(x.backend == NATIVE and not is_reference(x, denoiser) for x in self._levels)
        return self._runs_on if native else None

    def _bank(self, place: str, denoiser: nn.Module, names: Sequence[str]) -> LevelBank:
        new = [*self.modules, *(x.name for x in self._levels if not is_reference(x, denoiser))]
        here, there = next(denoiser.parameters()).device.type, self._kernels(denoiser)
        if there not in (None, here):
            raise UsageError(
                f"weights of the {place} are offloaded to {here} and run on {there}, whose "
                f"kernels want them packed there: apply native levels with the pipeline on {there} "
                "and call enable_model_cpu_offload afterwards, or take simulated levels"
            )
        own = self._own.of(place, denoiser, compute_dtype(denoiser))
        if new:
            print(LevelBank.memory(denoiser, new, names, self.residency, own), file=sys.stderr)
        return LevelBank(denoiser, self.names, names, None, self.residency, own)


def check_denoiser(place: str, denoiser: nn.Module) -> None:
    """Raise `UsageError` for what can't be right together with a plan."""
    registries = (vars(module).get("_diffusers_hook") for module in denoiser.modules())
    hooks = (hook for x in registries if x is not None for hook in x.hooks.values())
    if vars(denoiser).get("_is_cached") or any(hook._is_stateful for hook in hooks):
        raise UsageError(
            f"the {place} keeps results across steps in a cache, which plans change: take it off "
            "first (disable_cache)"
        )
    if any("_hf_hook" in vars(module) for module in list(denoiser.modules())[1:]):
        raise UsageError(
            f"the {place} is offloaded layer by layer (enable_sequential_cpu_offload): use "
            "enable_model_cpu_offload or enable_group_offload"
        )


def unmerge_disabled(denoiser: nn.Module) -> None:
    """Take adapters that are merged and disabled out of the weights, as their own next call would:
    then a level might stand in the place of their layer.
    """
    for module in denoiser.modules():
        if getattr(module, "disable_adapters", False) and getattr(module, "merged", False):
            cast(Any, module).unmerge()


class _Seen:
    """A denoiser's layers and their tensors, as they were when looked at. `mark` says whether
    levels made before still hold; `kernels` is a part of it.
    """

    def __init__(self, denoiser: nn.Module, names: Sequence[str], kernels: str | None) -> None:
        self.denoiser, self.names = denoiser, tuple(names)
        layers = [(name, denoiser.get_submodule(name)) for name in names]
        self._stood = [
            (denoiser.get_submodule(parent)._modules, key, layer, type(layer), _forward(layer))
            for name, layer in layers
            for parent, _, key in [name.rpartition(".")]
        ]
        self._held = [(x._parameters, key) for _, x in layers for key in ("weight", "bias")]
        self._layers = [layer for _, layer in layers]
        self.check()
        self._kept = self._tensors()  # so that no other can have their ids
        self._states, self._sums = self._now(), sums(denoiser, self._kept)
        self.mark: tuple[Any, ...] = (denoiser, self.names, kernels, self._states, self._sums)

    def check(self) -> None:
        """Raise `UsageError` for a layer that no other can stand for."""
        for name, layer in zip(self.names, self._layers, strict=True):
            check_layer(layer, name)

    def is_outdated(self) -> bool:
        """Whether a layer or a tensor is another, or was written to within sight of autograd. It is
        quick, as every call of a denoiser asks.
        """
        stands = all(
            modules.get(key) is layer and type(layer) is kind and _forward(layer) is forward
            for modules, key, layer, kind, forward in self._stood
        )
        return not stands or self._now() != self._states

    def is_written(self) -> bool:
        """Whether tensors were written to, by any way."""
        return self._sums != sums(self.denoiser, self._tensors())

    def _tensors(self) -> list[Tensor]:
        pairs = ((layer.weight, layer.bias) for layer in self._layers)
        return [tensor for pair in pairs for tensor in pair if isinstance(tensor, Tensor)]

    def _now(self) -> list[tuple[object, ...] | None]:
        return [_state(parameters.get(key)) for parameters, key in self._held]


def _forward(layer: nn.Module) -> object:
    return vars(layer).get("forward")


def _state(tensor: Tensor | None) -> tuple[object, ...] | None:
    if tensor is None:
        return None
    return id(tensor), tensor.dtype, None if tensor.is_inference() else tensor._version
