"""One module in place of a denoiser: it runs every step at the level that a plan says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tmpdiff_bench.deploy.position import resampled, step_of, steps_of
from tmpdiff_bench.deploy.twins import changes_nothing, condition, eager, twin
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.plan import PrecisionPlan

Layers = Callable[[nn.Module], Sequence[str]]
# methods of denoisers that must reach every level, as they change modules and not weights
_FOR_ALL = {
    "compile_repeated_blocks",
    "disable_group_offload",
    "enable_group_offload",
    "reset_attention_backend",
    "set_attention_backend",
}


class PlannedDenoiser(nn.Module):
    """Looks like the denoiser that it stands for, whose class, attributes, parameters and
    submodules it has, and calls it or one of its twins.

    Twins are made anew at the beginning of a run where the denoiser was changed in between, as by
    loading a LoRA.
    """

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
        vars(self).update(_denoiser=denoiser, _source=source, _pipeline=pipeline, _made={})
        self._modules, self._parameters = source._modules, source._parameters
        self._buffers, self.training = source._buffers, source.training
        self._layers, self._condition = layers, condition(source)
        self._timesteps: object = None
        self.plan, self.resample = plan, resample
        self._now = plan
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
        for level in levels:
            if level not in self._made:
                self._made[level] = self._make(level)

    def _make(self, level: str) -> nn.Module:
        if changes_nothing(level, self._source):
            return self.original
        return twin(self.original, level, self._layers(self._source)).train(self.training)

    @property
    def _twins(self) -> list[nn.Module]:
        return [module for module in self._made.values() if module is not self.original]

    # Not compiled, but what it calls is: the position in the loop is no part of any graph.
    @torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator]
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the denoiser gives, at the level of the present step."""
        scheduler = self._pipeline.scheduler
        if scheduler.timesteps is not self._timesteps:
            self._begin(scheduler)
        seen: Tensor | float | None = kwargs.get("timestep", args[1] if len(args) > 1 else None)
        level = self._now[step_of(scheduler, seen)]
        return self._made[level](*args, **kwargs)

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
            self._made.update({level: self._make(level) for level in self._made})
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
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for module in self._twins:
            module._apply(fn, recurse)
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in _FOR_ALL:
                return self._for_all(name)
            return getattr(vars(self)["_source"], name)

    def _for_all(self, name: str) -> Callable[..., None]:
        modules = (self._source, *map(eager, self._twins))
        methods = [getattr(module, name) for module in modules]

        def call(*args: Any, **kwargs: Any) -> None:
            for method in methods:
                method(*args, **kwargs)

        return call
