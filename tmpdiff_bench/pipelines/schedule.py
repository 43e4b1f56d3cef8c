"""Which step of a schedule each call of the scheduler belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Schedule:
    """The noise levels of one run of `steps` steps, `step_of[c]` the step that the scheduler's call
    c belongs to. `timesteps` has an entry a call, `sigmas` one a step where the scheduler has
    sigmas.
    """

    scheduler: str
    steps: int
    timesteps: tuple[float, ...]
    step_of: tuple[int, ...]
    sigmas: tuple[float, ...] | None

    @classmethod
    def of(cls, scheduler: Any, asked: int | None = None) -> Schedule:
        """The schedule that a scheduler has been set to, for `asked` steps where they are known."""
        timesteps = _floats(scheduler.timesteps)
        count = asked or getattr(scheduler, "num_inference_steps", None) or len(timesteps)
        started = getattr(scheduler, "prk_timesteps", None)  # by Runge-Kutta
        nodes = None
        if started is not None and len(started):
            nodes = _floats(scheduler._timesteps)
        order = getattr(scheduler, "order", 1)
        step_of = steps_of_calls(timesteps, int(count), int(order), nodes)
        sigmas = getattr(scheduler, "sigmas", None)
        first = [step_of.index(step) for step in dict.fromkeys(step_of)]
        told = None
        if sigmas is not None and len(sigmas) > max(first, default=0):
            levels = _floats(sigmas)
            told = tuple(levels[call] for call in first)
        timesteps = timesteps[: len(step_of)]
        return cls(type(scheduler).__name__, len(first), timesteps, step_of, told)

    @property
    def noise(self) -> tuple[float, ...]:
        """What tells two schedules apart: a sigma a step, or a timestep where there are none."""
        if self.sigmas is not None:
            return self.sigmas
        return tuple(self.timesteps[self.step_of.index(s)] for s in dict.fromkeys(self.step_of))


def _floats(values: Any) -> tuple[float, ...]:
    """Of a tensor, array or list, read at once."""
    listed = values.tolist() if hasattr(values, "tolist") else values
    return tuple(float(value) for value in listed)


def steps_of_calls(
    timesteps: Sequence[float], steps: int, order: int, nodes: Sequence[float] | None = None
) -> tuple[int, ...]:
    """The step of each call. A call that refines belongs to the step that it refines: the second
    ones of a solver of second order, and any whose timestep the next call repeats (PNDM's second).
    `nodes` are the schedule's own timesteps where a Runge-Kutta start calls between them. One call
    too many is where the last step leads to.

    >>> steps_of_calls([900, 700, 700, 500], 3, 1)  # PNDM without Runge-Kutta steps
    (0, 0, 1, 2)
    >>> steps_of_calls([900, 700, 700, 500, 500], 3, 2)  # Heun
    (0, 0, 1, 1, 2)
    >>> steps_of_calls([1.0, 0.5, 0.0], 2, 1)  # Stable Cascade's
    (0, 1)
    """
    calls = len(timesteps)
    if calls == steps:
        return tuple(range(calls))
    if order > 1 and -(-calls // order) == steps:
        return tuple(call // order for call in range(calls))
    refines = [call + 1 < calls and timesteps[call] == timesteps[call + 1] for call in range(calls)]
    refines[:1] = [False] * bool(calls)  # the first call has nothing to refine
    if nodes is not None:
        passed = [sum(node >= t for node in nodes) - 1 for t in timesteps]
        ends = [refining and t in nodes for refining, t in zip(refines, timesteps, strict=True)]
        return tuple(step - end for step, end in zip(passed, ends, strict=True))
    if calls - sum(refines) == steps:
        return tuple(call - sum(refines[: call + 1]) for call in range(calls))
    return tuple(range(steps if calls == steps + 1 else calls))
