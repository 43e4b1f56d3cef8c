"""Where a pipeline's denoising loop stands, read off its scheduler."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.plan import PrecisionPlan


def steps_of(scheduler: Any) -> int:
    """Steps of the whole schedule, also where a loop runs a part of it.

    Solvers of second order have two timesteps a step, the last step excepted.
    """
    order: int = scheduler.order
    return (len(scheduler.timesteps) + order - 1) // order


def step_of(scheduler: Any, seen: Tensor | float | None) -> int:
    """The step that the network is called for; `seen` is the timestep that it is given.

    Schedulers count their own calls, and image-to-image loops tell them where they begin; so both
    passes of guidance are at one step, and so are both calls of a solver of second order. Of one
    that does not count, or was not told, the timestep is looked up.

    Raises:
        UsageError: the loop has ended, or the timestep is not one of the schedule.
    """
    index = getattr(scheduler, "step_index", None)
    if index is None:
        index = getattr(scheduler, "begin_index", None)
    if index is None:
        index = _looked_up(scheduler, seen)
    if not 0 <= int(index) < len(scheduler.timesteps):
        raise UsageError(
            "the denoiser was called outside of its pipeline's loop, where a plan has no step: "
            "call deploy.remove(pipe) first"
        )
    return int(index) // int(scheduler.order)


def resampled(plan: PrecisionPlan, steps: int) -> PrecisionPlan:
    """The plan for another number of steps: each gets the level that holds at its place.

    >>> str(resampled(PrecisionPlan.parse("fp32*2 w4a4*6 fp32*2"), 5))
    'fp32 w4a4*3 fp32'
    """
    places = ((2 * step + 1) * len(plan) // (2 * steps) for step in range(steps))
    return PrecisionPlan(tuple(plan[place] for place in places))


def _looked_up(scheduler: Any, seen: Tensor | float | None) -> int:
    name = type(scheduler).__name__
    if seen is None:
        raise UsageError(f"{name} does not count steps, and the denoiser was given no timestep")
    value = float(seen.flatten()[0]) if isinstance(seen, Tensor) else float(seen)
    places = [i for i, t in enumerate(scheduler.timesteps.tolist()) if t == value]
    if len(places) != 1:
        raise UsageError(
            f"timestep {value:g} stands {len(places)} times in the schedule of {name}, which does "
            "not count its steps: take another scheduler"
        )
    return places[0]
