"""Runs in which what is known is not run again.

A replayed run is the pipeline's own loop with stored outputs of its modules. Its scheduler steps as
ever, from the same outputs to the same latents, memory and states of generators; so the run goes
on, bit for bit, as one from the beginning would.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.pipelines.loop import Director, Run
from tmpdiff_bench.pipelines.schedule import Schedule
from tmpdiff_bench.plan import PrecisionPlan

# changes the latents that a denoiser is given, rows of samples in turn: (latents, step, level)
Perturbation = Callable[[Tensor, int, str], Tensor]


class NonFiniteLatentsError(UsageError):
    """A step produced NaN or infinite latents; names the step and the level."""


@dataclass
class StepRecord:
    """`outputs` of the modules called in a step; `rows` went through denoisers."""

    outputs: list[Any] = field(default_factory=list)
    rows: int = 0


@dataclass
class Memo:
    """What a pipeline's modules returned before the loop, by name and in the order of calls, for
    all runs of the same samples; not `whole` before one of them has come to the loop. `given` tells
    the samples from others, and has to live as long.
    """

    given: tuple[Any, ...] = ()
    outputs: dict[str, list[Any]] = field(default_factory=dict)
    whole: bool = False


@dataclass(frozen=True)
class Request:
    """A call of the module at `place`, in the loop; of a denoiser, at a `level`."""

    place: str
    level: str | None
    run: Run
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def rows(self) -> int:
        """Rows through a denoiser."""
        return 0 if self.level is None else len(latents_of(self.args, self.kwargs))

    def output(self) -> Any:
        """What the call returns, made now."""
        return self.run(*self.args, **self.kwargs)


class EncodedError(Exception):
    """Ends a run at the first call of its denoiser."""


class Encoding(Director):
    """Directs what comes before the loop, which ends the run: what `memo` does not have is run and
    remembered. `came_to` is the call that the loop begins with, and `returned`, if that is to be
    known as well (`further`), what it returns.
    """

    def __init__(self, memo: Memo, *, further: bool = False) -> None:
        self._memo, self._further = memo, further
        self._seen: dict[str, list[Any]] = {}
        self._inside = False
        self.came_to: Request | None = None
        self.returned: Any = None

    def started(self) -> bool:
        """Whether the run has come to its loop."""
        return self.came_to is not None

    def component(self, name: str, step: int | None, run: Run, args: Any, kwargs: Any) -> Any:
        if self._inside:  # a part of what is remembered as a whole
            return run(*args, **kwargs)
        self._inside = True
        try:
            if step is None:
                return self._before(name, run, args, kwargs)
            return self._within(name, step, run, args, kwargs)
        finally:
            self._inside = False

    def denoise(self, place: str, step: int, run: Run, args: Any, kwargs: Any) -> Any:
        self._begun()
        self.came_to = Request(place, "", run, args, kwargs)
        if self._further:
            self.returned = self.came_to.output()
        raise EncodedError

    def _before(self, name: str, run: Run, args: Any, kwargs: Any) -> Any:
        """A call before the loop."""
        seen = self._seen.setdefault(name, [])
        if self._memo.whole and len(seen) < len(self._memo.outputs.get(name, ())):
            seen.append(self._memo.outputs[name][len(seen)])
            return fetched(seen[-1])
        output = run(*args, **kwargs)
        seen.append(put_away(output))
        return output

    def _within(self, name: str, step: int, run: Run, args: Any, kwargs: Any) -> Any:
        """A call of another module within a step."""
        return run(*args, **kwargs)

    def _begun(self) -> None:
        """The loop begins."""
        if not self._memo.whole:
            self._memo.outputs, self._memo.whole = self._seen, True


class Running(Encoding):
    """Directs a run of `steps` steps to its end."""

    def __init__(self, memo: Memo, steps: int) -> None:
        super().__init__(memo)
        self._steps = steps
        self._number = 0  # of the next call in the step
        self._random = _global_states()
        self.first: int | None = None
        self.schedule: Schedule | None = None

    def started(self) -> bool:
        return self.first is not None

    def begin(self, schedule: Schedule) -> None:
        if self.first is not None:
            raise UsageError(
                f"{schedule.scheduler} is set to new timesteps within a run: runs of several loops "
                "can't be recorded, as their steps can't be told apart"
            )
        if schedule.steps != self._steps:
            raise UsageError(
                f"plans have {self._steps} steps, the pipeline's schedule {schedule.steps}"
            )
        self.schedule = schedule

    def _next(self, step: int) -> int:
        """The number of a call in its step."""
        if self.first is None:
            self.first = step
            self._begun()
        number, self._number = self._number, self._number + 1
        return number

    def _check(self, latents: Tensor, at: str) -> None:
        """Of a step that was computed. Raises `NonFiniteLatentsError`, and as `end`."""
        assert self.schedule is not None
        self.end(self.schedule.scheduler)
        if not torch.isfinite(latents).all():
            raise NonFiniteLatentsError(
                f"{at} produced non-finite latents: leave the level out, or run the model in "
                "another dtype"
            )

    def end(self, name: str) -> None:
        """The run of the pipeline `name` is over. Raises `UsageError` where it drew random numbers
        that its generators don't give.
        """
        now = _global_states()
        if any(not torch.equal(now[key], state) for key, state in self._random.items()):
            raise UsageError(
                f"{name} draws from torch's global random state, beside the generators that it is "
                "given: no run could be drawn again; take another scheduler or other arguments"
            )


class Replay(Running):
    """Directs one run along a plan: what is called in the steps of `known` is replayed, everything
    else asked of `compute`, and each such step told to `keep`. `memo` holds what was computed
    before the loop, for all runs of the same samples; `path` is told the latents after each step.
    """

    def __init__(
        self,
        plan: PrecisionPlan,
        known: Mapping[int, StepRecord],
        memo: Memo,
        *,
        compute: Callable[[Request], Any],
        keep: Callable[[int, StepRecord], None],
        path: Callable[[Tensor], None],
        perturb: Perturbation | None = None,
    ) -> None:
        super().__init__(memo, len(plan))
        self._plan, self._known = plan, known
        self._compute, self._keep, self._path, self._perturb = compute, keep, path, perturb
        self._now = StepRecord()
        self.failed_at = 0  # levels of the plan that led to a failure
        self.replaying = False  # the last call of a denoiser was not run

    def denoise(self, place: str, step: int, run: Run, args: Any, kwargs: Any) -> Any:
        number = self._next(step)
        self.replaying = step in self._known
        if not self.replaying:
            self._now.rows += len(latents_of(args, kwargs))
            if self._perturb is not None:
                args, kwargs = self._perturbed(step, args, kwargs)
        return self._called(step, number, Request(place, self._plan[step], run, args, kwargs))

    def _within(self, name: str, step: int, run: Run, args: Any, kwargs: Any) -> Any:
        return self._called(step, self._next(step), Request(name, None, run, args, kwargs))

    def _called(self, step: int, number: int, request: Request) -> Any:
        """A copy of an output that is known, or is kept now: pipelines may change it."""
        if step in self._known:
            return cloned(self._known[step].outputs[number])
        self._now.outputs.append(self._compute(request))
        return cloned(self._now.outputs[-1])

    def advance(self, step: int, last: bool, run: Run, args: Any, kwargs: Any) -> Any:
        result = run(*args, **kwargs)
        latents = result if isinstance(result, Tensor) else result[0]
        if step not in self._known:
            self.failed_at = step + 1
            self._check(latents, f"step {step} at level {self._plan[step]}")
        if last:
            self._path(latents)
            if step not in self._known:
                self._keep(step, self._now)
            self._now, self._number = StepRecord(), 0
        return result

    def _perturbed(self, step: int, args: Any, kwargs: Any) -> tuple[Any, Any]:
        assert self._perturb is not None
        latents, level = latents_of(args, kwargs), self._plan[step]
        if isinstance(latents, Tensor):
            changed: Any = self._perturb(latents, step, level)
        else:
            changed = type(latents)(self._perturb(torch.stack(list(latents)), step, level))
        swapped = tuple(changed if x is latents else x for x in args)
        return swapped, {k: changed if v is latents else v for k, v in kwargs.items()}


def latents_of(args: Any, kwargs: Mapping[str, Any]) -> Any:
    """The latents that a denoiser is given: a tensor or a list with an entry a row."""
    for name in ("hidden_states", "sample", "x"):
        if name in kwargs:
            return kwargs[name]
    return args[0]


def _global_states() -> dict[str, Tensor]:
    """Torch's own random states: of the CPU, and of graphics cards in use."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        for index in range(torch.cuda.device_count()):
            states[f"cuda:{index}"] = torch.cuda.get_rng_state(index)
    return states


def _mapped(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """A copy of what a module returned, in which entries of a kind are changed."""
    if isinstance(value, kind):
        return change(value)
    if type(value) in (list, tuple):
        return type(value)(_mapped(entry, kind, change) for entry in value)
    return copy.deepcopy(value)


def cloned(value: Any) -> Any:
    """A copy of what a module returned: pipelines may change it in place."""
    return _mapped(value, Tensor, lambda tensor: tensor.detach().clone())


@dataclass(frozen=True)
class _Away:
    """A tensor in main memory, and the device that it belongs to."""

    tensor: Tensor
    device: torch.device


def put_away(value: Any) -> Any:
    """A copy of what a module returned, its tensors in main memory."""
    return _mapped(value, Tensor, lambda t: _Away(t.detach().to("cpu", copy=True), t.device))


def fetched(value: Any) -> Any:
    """A copy of what was put away, where it belongs."""
    return _mapped(value, _Away, lambda away: away.tensor.to(away.device, copy=True))


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in a structure of lists, tuples and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from tensors_in(entry)


Prefix = tuple[int, tuple[str, ...]]  # a batch of samples, and the levels so far


class Held:
    """Values by prefix within a number of bytes; those used last stay. `peak` is the most there
    were.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._bytes, self.peak = limit, 0, 0
        self._values: OrderedDict[Prefix, tuple[Any, int]] = OrderedDict()

    def get(self, key: Prefix) -> Any:
        """A value that is held, now the one used last; None where it isn't."""
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key][0]

    def put(self, key: Prefix, value: Any, size: int, needed: Container[Prefix] = ()) -> bool:
        """Hold a value of `size` bytes at the expense of others, but not of those `needed`; whether
        there was room.
        """
        if key in self._values:
            return True
        for other in [k for k in self._values if k not in needed]:
            if self._bytes + size <= self._limit:
                break
            self._bytes -= self._values.pop(other)[1]
        if self._bytes + size > self._limit:
            return False
        self._values[key] = value, size
        self._bytes += size
        self.peak = max(self.peak, self._bytes)
        return True
