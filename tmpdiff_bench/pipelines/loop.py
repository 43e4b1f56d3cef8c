"""A pipeline's own denoising loop, watched and directed from outside, without a copy of it.

While a call runs, `scheduler.step` and `scheduler.set_timesteps` count its steps, and the calls of
its modules go through a director, which may change, skip or replay them. When the call ends,
however it ends, pipeline, scheduler and modules are as they were.

Modules are watched at the one place of `torch.nn.Module` that stands before everything else: hooks
of accelerate and diffusers, and graphs of `torch.compile`, all lie below it. (diffusers' own
`HookRegistry` writes `forward` and stays below a compiled wrapper, and what it leaves on a module
can't be pickled.)
"""

from __future__ import annotations

import functools
import inspect
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.pipelines.schedule import Schedule

PLACES = ("transformer", "unet", "transformer_2", "unet_2", "prior", "decoder")
Run = Callable[..., Any]


def eager(module: nn.Module) -> nn.Module:
    """The module itself where `torch.compile` has wrapped it."""
    inner: nn.Module = getattr(module, "_orig_mod", module)
    return inner


_TURNS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()


def turn(module: nn.Module) -> threading.RLock:
    """What a thread holds while a watched module runs: levels may be swapped in it meanwhile."""
    return _TURNS.setdefault(eager(module), threading.RLock())


def denoisers(pipe: Any) -> dict[str, nn.Module]:
    """The modules that levels change, by their names in the pipeline.

    Raises:
        UsageError: there is none, or the pipeline has no scheduler that steps.
    """
    found = {name: getattr(pipe, name, None) for name in PLACES}
    there = {name: module for name, module in found.items() if isinstance(module, nn.Module)}
    kind = type(pipe).__name__
    if not there:
        raise UsageError(f"{kind} has no denoiser: none of {', '.join(PLACES)} is a module of it")
    if not callable(getattr(getattr(pipe, "scheduler", None), "step", None)):
        raise UsageError(f"{kind} has no scheduler whose step could be counted")
    return there


class Director:
    """What is told of a run, and decides on its calls: here they run as they are. `step` counts
    from 0; it is None before the first call of a denoiser, and again after the last step.
    """

    def begin(self, schedule: Schedule) -> None:
        """Timesteps have been set; nothing has been denoised yet."""

    def denoise(self, place: str, step: int, run: Run, args: Any, kwargs: Any) -> Any:
        """The denoiser at `place` is called; `run(*args, **kwargs)` is its own output."""
        return run(*args, **kwargs)

    def component(self, name: str, step: int | None, run: Run, args: Any, kwargs: Any) -> Any:
        """Anything else of the pipeline is called: text encoders, VAE encoder, ControlNet."""
        return run(*args, **kwargs)

    def advance(self, step: int, last: bool, run: Run, args: Any, kwargs: Any) -> Any:
        """`scheduler.step` is called; `last` of those that belong to the step."""
        return run(*args, **kwargs)


@contextmanager
def directed(pipe: Any, director: Director) -> Iterator[Loop]:
    """Direct the calls of a pipeline inside of the `with`, in this thread. Calls of its modules
    from other threads wait for ours.

    Raises:
        UsageError: as `denoisers`; the loop ends no step with the pipeline's `scheduler.step`, ends
            more of them than it has, or ends one without a call of its denoiser.
    """
    loop = Loop(pipe, director)
    try:
        loop.install()
        yield loop
        loop.check_counted()
    finally:
        loop.uninstall()


@contextmanager
def undone(modules: Iterable[nn.Module]) -> Iterator[None]:
    """What pipelines set on modules inside of the `with`, and would take back at the end of a run
    that is broken off, is taken back: the attention processors of PAG.
    """
    every = [inner for module in modules for inner in module.modules()]
    before = [(inner, dict(vars(inner)), dict(inner._modules)) for inner in every]
    try:
        yield
    finally:
        for inner, attributes, parts in before:
            vars(inner).update(attributes)
            inner._modules.update(parts)


class Loop:
    """One run: where it stands, and what has been put aside to watch it."""

    def __init__(self, pipe: Any, director: Director) -> None:
        self._kind, self._director = type(pipe).__name__, director
        self._denoisers, self._scheduler = denoisers(pipe), pipe.scheduler
        self._pipe = pipe
        self.schedule: Schedule | None = None
        self._begin: int | None = None  # the first call of the scheduler in this run
        self._done = 0  # calls of the scheduler since
        self._called = 0  # calls of a denoiser in the present step
        self._passes = 0  # in all
        self._undo: list[Callable[[], None]] = []
        names = list(inspect.signature(self._scheduler.step).parameters)
        self._timestep_at = names.index("timestep") if "timestep" in names else None

    def install(self) -> None:
        """Put the watch in place."""
        for name, call in (("set_timesteps", self._set_timesteps), ("step", self._step)):
            self._undo.append(_Watched.watch(self._scheduler, name, call, alone=True))
        for name, part in vars(self._pipe).items():
            if isinstance(part, nn.Module):
                called = self._denoise if name in self._denoisers else self._component
                watcher = self._in_turn(part, functools.partial(called, name))
                self._undo.append(_Slot.watch(part, _CALL, watcher))
        vae = getattr(self._pipe, "vae", None)
        for owner, name in ((self._pipe, "encode_prompt"), (vae, "encode")):
            if callable(getattr(owner, name, None)):
                watcher = functools.partial(self._component, name)
                self._undo.append(_Watched.watch(owner, name, watcher))

    def uninstall(self) -> None:
        """Leave nothing behind."""
        while self._undo:
            self._undo.pop()()

    def _in_turn(self, module: nn.Module, watcher: _Watcher) -> _Watcher:
        def watch(run: Run, args: Any, kwargs: Any) -> Any:
            with turn(module):
                return watcher(run, args, kwargs)

        return watch

    def _set_timesteps(self, run: Run, args: Any, kwargs: Any) -> Any:
        result = run(*args, **kwargs)
        asked = kwargs.get("num_inference_steps", args[0] if args else None)
        self._start(asked if isinstance(asked, int) else None)
        return result

    def _start(self, asked: int | None = None) -> None:
        self.schedule = Schedule.of(self._scheduler, asked)
        self._begin, self._done, self._called = None, 0, 0
        self._director.begin(self.schedule)

    @property
    def step(self) -> int | None:
        """The present step; None outside of the loop."""
        if self.schedule is None or self._begin is None:
            return None
        call = self._begin + self._done
        return self.schedule.step_of[call] if call < len(self.schedule.step_of) else None

    def _denoise(self, place: str, run: Run, args: Any, kwargs: Any) -> Any:
        if self._pipe.scheduler is not self._scheduler:
            raise UsageError(f"the scheduler of {self._kind} was replaced in the middle of a run")
        if self.schedule is None:
            self._start()
        if self._begin is None:
            self._begin = self._first_call(args, kwargs)
        step = self.step
        if step is None:
            raise UsageError(
                f"{self._kind} calls its {place} after the last step of its schedule, where a plan "
                "has no level"
            )
        self._called += 1
        self._passes += 1
        return self._director.denoise(place, step, run, args, kwargs)

    def _component(self, name: str, run: Run, args: Any, kwargs: Any) -> Any:
        after = self._begin is not None and self.step is None
        if after:  # decoding is the end of every run, and of no step
            return run(*args, **kwargs)
        return self._director.component(name, self.step, run, args, kwargs)

    def _step(self, run: Run, args: Any, kwargs: Any) -> Any:
        step = self.step
        if self.schedule is None or self._begin is None or step is None or not self._called:
            raise UsageError(
                f"{self._kind} calls scheduler.step {self._done + 1} times, at least once without "
                "a call of its denoiser in between: its steps can't be told"
            )
        call = self._begin + self._done
        self._check_timestep(call, args, kwargs)
        step_of = self.schedule.step_of
        last = call + 1 == len(step_of) or step_of[call + 1] != step
        result = self._director.advance(step, last, run, args, kwargs)
        self._done, self._called = self._done + 1, 0
        return result

    def _first_call(self, args: Any, kwargs: Any) -> int:
        """Image-to-image loops begin in the middle of the schedule, and most say so."""
        assert self.schedule is not None
        for name in ("begin_index", "step_index"):
            index = getattr(self._scheduler, name, None)
            if index is not None:
                return int(index)
        seen = _number(kwargs.get("timestep", args[1] if len(args) > 1 else None))
        if seen is None:
            return 0
        # some denoisers are given shares of the training's timesteps: 1.0 is the first, not a last
        whole = getattr(self._scheduler.config, "num_train_timesteps", 1)
        times = self.schedule.timesteps
        return next((times.index(t) for t in (seen * whole, seen) if t in times), 0)

    def _check_timestep(self, call: int, args: Any, kwargs: Any) -> None:
        assert self.schedule is not None
        at = self._timestep_at
        given = args[at] if at is not None and at < len(args) else kwargs.get("timestep")
        if isinstance(given, Tensor) and given.device.type != "cpu":
            return  # to read it would wait for the device, at every step
        seen, times = _number(given), self.schedule.timesteps
        if seen is not None and seen in times and seen != times[call]:
            raise UsageError(
                f"{self._kind} stands at timestep {seen:g} where step {self.step} of its schedule "
                f"has {times[call]:g}: its steps can't be told"
            )

    def check_counted(self) -> None:
        """Raise `UsageError` where a denoiser was called and no step was counted."""
        if self._passes and not self._done:
            raise UsageError(
                f"{self._kind} calls its denoiser, but not the step of its scheduler: pipelines "
                "whose loop ends each step with scheduler.step are supported"
            )


_ABSENT = object()
_CALL = "_compiled_call_impl"  # what `nn.Module.__call__` prefers to everything else
_Watcher = Callable[[Run, Any, Any], Any]


class _Watched:
    """Stands for a method of an object while threads watch it, and hands the calls of each of these
    to its watcher. A copy of the object has its own method.
    """

    _guard = threading.Lock()

    def __init__(self, owner: Any, name: str) -> None:
        self._run: Run = getattr(owner, name)
        functools.update_wrapper(self, self._run)  # pipelines look at signatures
        self._owner, self._name = owner, name
        self._before = vars(owner).get(name, _ABSENT)
        self._watchers: dict[int, _Watcher] = {}

    @classmethod
    def watch(cls, owner: Any, name: str, watcher: _Watcher, alone: bool = False) -> Run:
        """Watch a method in this thread; returns what ends it.

        Raises:
            UsageError: it is to be `alone`, and is not.
        """
        thread = threading.get_ident()
        with cls._guard:
            found = vars(owner).get(name)
            if not isinstance(found, cls):
                found = vars(owner)[name] = cls(owner, name)
            elif alone:
                raise UsageError(
                    f"the {type(owner).__name__} is in the middle of another run: give pipelines "
                    "that run at once one each, and record a pipeline without a plan"
                )
            outer = found._watchers.get(thread)
            found._watchers[thread] = watcher
        return functools.partial(found._end, thread, outer)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        watcher = self._watchers.get(threading.get_ident())
        if watcher is None:
            return self._run(*args, **kwargs)
        return watcher(self._run, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo.get(id(self._owner))
        if copied is None:  # of its attributes alone, which may be put back into it
            return self
        return types.MethodType(getattr(type(copied), self._name), copied)

    def _end(self, thread: int, outer: _Watcher | None) -> None:
        attributes = vars(self._owner)
        with self._guard:
            if outer is not None:
                self._watchers[thread] = outer
            else:
                self._watchers.pop(thread, None)
            if not self._watchers and attributes.get(self._name) is self:
                if self._before is _ABSENT:
                    del attributes[self._name]
                else:
                    attributes[self._name] = self._before


class _Slot(_Watched):
    """Stands before all calls of a module. Those of threads that don't watch wait while levels are
    swapped in it, and then run it as it is.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        super().__init__(module, name)
        if self._run is None:
            self._run = module._call_impl
        self._turn = turn(module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() in self._watchers:
            return super().__call__(*args, **kwargs)
        with self._turn:
            return self._run(*args, **kwargs)


def _number(value: Any) -> float | None:
    if isinstance(value, Tensor):
        return float(value.max()) if value.numel() else None  # given frames stand at 0
    return float(value) if isinstance(value, int | float) else None
