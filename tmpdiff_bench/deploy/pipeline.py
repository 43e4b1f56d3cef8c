"""Plans in diffusers pipelines: `apply`, `describe` and `remove`."""

from __future__ import annotations

import functools
import inspect
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, finalize

from tmpdiff_bench.deploy.current import CurrentLevels
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.pipelines.loop import Director, Run, denoisers, directed
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
        self._plan = plan.resampled(schedule.steps)

    def denoise(self, place: str, step: int, run: Run, args: Any, kwargs: Any) -> Any:
        return self._planned.levels.run(place, self._plan[step], run, args, kwargs)

    def advance(self, step: int, last: bool, run: Run, args: Any, kwargs: Any) -> Any:
        self._planned.steps_run += last
        return run(*args, **kwargs)


def told(schedule: Schedule) -> PlanSchedule:
    """What plans keep of a run's schedule: an entry a step."""
    first = (schedule.step_of.index(step) for step in range(schedule.steps))
    timesteps = tuple(schedule.timesteps[call] for call in first)
    return PlanSchedule(schedule.scheduler, schedule.sigmas, timesteps)


# Pipelines are told apart here and not by an attribute, a subclass or a hook of theirs: so between
# calls they are exactly the user's, can be pickled, and hand no plan on by `from_pipe`.
_PLANNED: WeakKeyDictionary[Any, Planned] = WeakKeyDictionary()
# `__call__` of a class while one of its pipelines has a plan: ours, and what was there before
_WATCHED: dict[Any, tuple[Callable[..., Any], Callable[..., Any] | None]] = {}
_GUARD = threading.RLock()


def apply(
    pipe: Any,
    plan: PrecisionPlan,
    *,
    levels: Sequence[str] | None = None,
    modules: Mapping[str, Any] | None = None,
    quantized: Sequence[str] | None = None,
    residency: str = "resident",
    resample: bool = False,
) -> None:
    """Make a diffusers pipeline run a plan until `remove`, in place of one that it may run already.

    The plan's steps are those of the whole schedule (`num_inference_steps`), as are the noise
    levels that it was made for: image-to-image calls, which begin in the middle of the schedule,
    begin in the middle of the plan. A call with another number of steps is an error, unless
    `resample` stretches the plan to it; one at other noise levels than the plan's own schedule says
    warns once. Levels that round nothing beyond the denoiser's own dtype run the denoiser itself.

    The pipeline is looked at anew at every call: LoRAs, processors, hooks, weights, schedulers and
    denoisers that were changed in between act at every level.

    `modules`: levels of your own by name, as in `Experiment`: modules of the denoiser's class, such
    as quantized checkpoints, or paths of such.

    `levels` are those to keep at hand beside the plan's: another plan of them, with the same
    `quantized` and `residency`, makes none anew. `quantized` names the denoiser's layers that
    levels change (by default, `quantized_layers`). `residency` says where weights of levels not in
    use are, as in `LevelBank`.

    >>> from tmpdiff_bench.pipelines import load_pipeline
    >>> pipe = load_pipeline("sd3").pipeline
    >>> apply(pipe, PrecisionPlan.parse("fp32*3 w4a4*14 fp32*3"))
    >>> print(describe(pipe).splitlines()[0])
    plan: fp32*3 w4a4*14 fp32*3 (20 steps)
    >>> remove(pipe)

    Raises:
        UsageError: an unknown level, or one that the device lacks; a pipeline without a denoiser,
            offloaded layer by layer, or with a cache across steps; names of no layers.
    """
    wanted = tuple(dict.fromkeys((*(levels or ()), *plan)))
    denoisers(pipe)
    with _GUARD:
        before = _PLANNED.get(pipe)
        turn = threading.RLock() if before is None else before.turn
    with turn:
        made = None if before is None else before.levels
        if made is not None and made.serve(wanted, modules, quantized, residency):
            made.refresh(pipe)
        else:
            made = CurrentLevels(pipe, wanted, modules or {}, quantized, residency)
        with _GUARD:
            _check_class(type(pipe))
            _watch(type(pipe))
            if before is None:
                finalize(pipe, _unwatch, type(pipe))
            _PLANNED[pipe] = Planned(plan, made, resample=resample, turn=turn)


def remove(pipe: Any) -> None:
    """Let a pipeline run without a plan again.

    Raises `UsageError` where no plan was applied.
    """
    with _GUARD:
        _planned(pipe)
        del _PLANNED[pipe]
        _unwatch(type(pipe))


def describe(pipe: Any) -> str:
    """What a pipeline runs: its plan, the levels with the bytes that each has for itself, and the
    steps run so far.

    Raises `UsageError` where no plan was applied.
    """
    planned = _planned(pipe)
    lines = [f"plan: {planned.plan} ({len(planned.plan)} steps)"]
    for place, bank in planned.levels.banks.items():
        own = {name: level.module for name, level in bank.own.items()}
        takes = bank.memory(bank.denoiser, bank.levels, bank.quantized, bank.residency, own)
        told = "".join(f"; {name} {level.words()}" for name, level in bank.own.items())
        lines.append(f"{place}: quantized layers: {len(bank.quantized)}; {takes}{told}")
    lines.append(f"steps run so far: {planned.steps_run}")
    return "\n".join(lines)


def _planned(pipe: Any) -> Planned:
    planned = _PLANNED.get(pipe)
    if planned is None:
        raise UsageError("this pipeline runs no plan")
    return planned


def _check_class(kind: Any) -> None:
    """Raise `UsageError` where a plan would go when something else does."""
    if getattr(kind, "_is_cached", False):
        raise UsageError(
            f"a cache has wrapped {kind.__name__}, and would take the plan off with it: take it "
            "off all pipelines of the class first (disable_cache)"
        )


def _watch(kind: Any) -> None:
    """Python looks `__call__` up in the class: there runs of planned pipelines are told apart."""
    original = kind.__call__
    if kind in _WATCHED:
        ours = _WATCHED[kind][0]
        if inspect.unwrap(original, stop=lambda function: function is ours) is ours:
            return

    @functools.wraps(original)
    def call(pipe: Any, *args: Any, **kwargs: Any) -> Any:
        planned = _PLANNED.get(pipe)
        if planned is None or planned.running:
            return original(pipe, *args, **kwargs)
        with planned.run(pipe):
            return original(pipe, *args, **kwargs)

    _WATCHED[kind] = call, vars(kind).get("__call__")
    kind.__call__ = call


def _unwatch(kind: Any) -> None:
    """The class as it was, unless another pipeline of it has a plan."""
    with _GUARD:
        if kind not in _WATCHED or any(type(other) is kind for other in _PLANNED):
            return
        ours, before = _WATCHED[kind]
        if vars(kind).get("__call__") is not ours:
            return  # somebody wrapped it again: ours stays, and lets every pipeline run as it is
        del _WATCHED[kind]
        if before is None:
            del kind.__call__
        else:
            kind.__call__ = before
