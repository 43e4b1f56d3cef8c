"""One module in place of a denoiser: it runs every step at the level that a plan says."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from tmpdiff_bench.deploy.position import resampled, step_of, steps_of
from tmpdiff_bench.deploy.twins import HOOKS, condition, eager, load_again, twin
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.levels import Level, LevelBank
from tmpdiff_bench.levels.devices import is_reference
from tmpdiff_bench.plan import PrecisionPlan

P = ParamSpec("P")
R = TypeVar("R")
Layers = Callable[[nn.Module], Sequence[str]]
# methods of denoisers that must reach every level, as they change modules and not weights
_FOR_ALL = {"compile_repeated_blocks", "reset_attention_backend", "set_attention_backend"}
# what others set on this module and mean for it alone; all else is set on the denoiser
_OWN = {*HOOKS, "_compiled_call_impl"}


def _uncompiled(method: Callable[P, R], *, below: bool) -> Callable[P, R]:
    """Not compiled, nor what it calls where `below`: the position in the loop is no part of any
    graph, and tracing what finds it would take longer than the network.
    """
    found: Callable[P, R] = torch.compiler.disable(method, recursive=below)
    return found


class PlannedDenoiser(nn.Module):
    """Looks like the denoiser that it stands for, whose class, attributes, parameters and
    submodules it has, and calls it or one of its twins.

    Twins are made anew at the beginning of a run where the denoiser was changed in between, as by
    loading a LoRA. What they take is printed on stderr before they are made first.
    """

    plan: PrecisionPlan
    resample: bool
    _now: PrecisionPlan
    _timesteps: object
    _made: dict[str, nn.Module]
    _condition: tuple[object, ...]

    def __init__(
        self,
        pipeline: Any,
        denoiser: nn.Module,
        plan: PrecisionPlan,
        *,
        levels: Sequence[str],
        layers: Layers,
        resample: bool,
    ) -> None:
        super().__init__()
        source = eager(denoiser)
        # outside of nn.Module's bookkeeping: weights are to be seen once, under their own names
        vars(self).update(_denoiser=denoiser, _source=source, _pipeline=pipeline)
        vars(self).update(plan=plan, resample=resample, _now=plan, _timesteps=None)
        vars(self).update(_made={}, _layers=layers, _condition=condition(source))
        self._modules, self._parameters = source._modules, source._parameters
        self._buffers, self.training = source._buffers, source.training
        self.hold(levels)

    @property
    def __class__(self) -> type:  # diffusers asks it, to tell what a component is
        return type(self._source)

    @__class__.setter
    def __class__(self, value: type) -> None:
        raise TypeError("a planned denoiser has the class of the denoiser that it stands for")

    @property
    def original(self) -> nn.Module:
        """The denoiser."""
        found: nn.Module = vars(self)["_denoiser"]
        return found

    def set_plan(self, plan: PrecisionPlan, levels: Sequence[str], *, resample: bool) -> None:
        """Run another plan from the next run on; levels that are there already are kept."""
        self.hold(levels)
        self.plan, self.resample, self._timesteps = plan, resample, None

    def hold(self, levels: Sequence[str]) -> None:
        """Have all levels at hand. Raises `UsageError` for one that cannot be had."""
        missing = [level for level in levels if level not in self._made]
        new = [level for level in missing if not is_reference(Level.parse(level), self._source)]
        if new:
            layers = self._layers(self._source)
            print(LevelBank.memory(self._source, new, layers), file=sys.stderr)
        self._made.update({level: self._make(level) for level in missing})

    def _make(self, level: str) -> nn.Module:
        if is_reference(Level.parse(level), self._source):
            return self.original
        return twin(self.original, level, self._layers(self._source)).train(self.training)

    @property
    def _twins(self) -> list[nn.Module]:
        return [module for module in self._made.values() if module is not self.original]

    @partial(_uncompiled, below=False)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the denoiser gives, at the level of the present step."""
        present = self._present(kwargs.get("timestep", args[1] if len(args) > 1 else None))
        return present(*args, **kwargs)

    @partial(_uncompiled, below=True)
    def _present(self, seen: Tensor | float | None) -> nn.Module:
        scheduler = self._pipeline.scheduler
        if scheduler.timesteps is not self._timesteps:
            self._begin(scheduler)
        return self._made[self._now[step_of(scheduler, seen)]]

    def _begin(self, scheduler: Any) -> None:
        """Prepare for a run: schedulers make their timesteps anew for each."""
        steps = steps_of(scheduler)
        if steps != len(self.plan) and not self.resample:
            raise UsageError(
                f"the plan has {len(self.plan)} steps, the schedule of this call {steps}: ask for "
                "as many, or stretch the plan by deploy.apply(..., resample=True)"
            )
        self._now = resampled(self.plan, steps)
        if (found := condition(self._source)) != self._condition:
            for level in self._made:  # each puts aside what it shares with the one before
                load_again(self)
                self._made[level] = self._make(level)
            load_again(self)
            self._condition = found
        self._timesteps = scheduler.timesteps

    def train(self, mode: bool = True) -> PlannedDenoiser:
        """Switch all levels."""
        super().train(mode)
        for module in (self._source, *self._twins):
            module.train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PlannedDenoiser:
        """Move or cast all levels; what they share moves once."""
        nn.Module._apply(self, fn, recurse)
        for module in self._twins:
            module._apply(fn, recurse)
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in HOOKS:
                raise
            if name in _FOR_ALL:
                return self._for_all(name)
            return getattr(vars(self)["_source"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN or name in vars(self):
            super().__setattr__(name, value)
        else:
            setattr(vars(self)["_source"], name, value)

    def _for_all(self, name: str) -> Callable[..., None]:
        modules = (self._source, *map(eager, self._twins))
        methods = [getattr(module, name) for module in modules]

        def call(*args: Any, **kwargs: Any) -> None:
            for method in methods:
                method(*args, **kwargs)

        return call
