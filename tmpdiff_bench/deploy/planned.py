"""What a pipeline with a plan does at each of its calls."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tmpdiff_bench.deploy.current import CurrentLevels
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.pipelines.loop import Director, Run, directed
from tmpdiff_bench.pipelines.schedule import Schedule
from tmpdiff_bench.plan import PlanSchedule, PrecisionPlan


class Planned:
    """A plan of one pipeline, with the levels that it needs. `steps_run` counts steps of all calls.

    `turn` is the pipeline's: of calls in several threads one runs at a time.
    """

    def __init__(
        self, plan: PrecisionPlan, levels: CurrentLevels, *, resample: bool, turn: threading.RLock
    ) -> None:
        self.plan, self.levels, self.resample, self.turn = plan, levels, resample, turn
        self.steps_run = 0
        self._thread: int | None = None
        self._compared = False

    @property
    def running(self) -> bool:
        """Whether this thread is in a call of the pipeline."""
        return self._thread == threading.get_ident()

    @contextmanager
    def run(self, pipe: Any) -> Iterator[None]:
        """One call of the pipeline.

        Raises:
            UsageError: the call can't run the plan as it stands, or went against it.
        """
        with self.turn:
            self.levels.refresh(pipe)
            self._thread = threading.get_ident()
            try:
                with directed(pipe, _PlannedRun(self)):
                    yield
            finally:
                self._thread = None
            self.levels.check_followed()

    def compare(self, schedule: Schedule) -> None:
        """Warn, once, where a run's noise levels are not those that the plan was made for."""
        if self._compared or self.plan.schedule is None:
            return
        if difference := self.plan.schedule.difference(told(schedule)):
            self._compared = True
            warnings.warn(f"the plan was made for other noise levels: {difference}", stacklevel=2)


class _PlannedRun(Director):
    """Directs one run: every call of a denoiser at the level of its step."""

    def __init__(self, planned: Planned) -> None:
        self._planned, self._plan = planned, planned.plan

    def begin(self, schedule: Schedule) -> None:
        planned, plan = self._planned, self._planned.plan
        if schedule.steps == len(plan):
            planned.compare(schedule)
        elif not planned.resample:
            raise UsageError(
                f"the plan has {len(plan)} steps, the schedule of this call {schedule.steps}: ask "
                "for as many, or stretch the plan by deploy.apply(..., resample=True)"
            )
        self._plan = resampled(plan, schedule.steps)

    def denoise(self, place: str, step: int, run: Run, args: Any, kwargs: Any) -> Any:
        with self._planned.levels.at(place, self._plan[step]):
            return run(*args, **kwargs)

    def advance(self, step: int, last: bool, run: Run, args: Any, kwargs: Any) -> Any:
        self._planned.steps_run += last
        return run(*args, **kwargs)


def told(schedule: Schedule) -> PlanSchedule:
    """What plans keep of a run's schedule: an entry a step."""
    first = (schedule.step_of.index(step) for step in range(schedule.steps))
    timesteps = tuple(schedule.timesteps[call] for call in first)
    return PlanSchedule(schedule.scheduler, schedule.sigmas, timesteps)


def resampled(plan: PrecisionPlan, steps: int) -> PrecisionPlan:
    """The plan for another number of steps: each gets the level that holds at its place.

    >>> str(resampled(PrecisionPlan.parse("fp32*2 w4a4*6 fp32*2"), 5))
    'fp32 w4a4*3 fp32'
    """
    if steps == len(plan):
        return plan
    places = ((2 * step + 1) * len(plan) // (2 * steps) for step in range(steps))
    return PrecisionPlan(tuple(plan[place] for place in places))
