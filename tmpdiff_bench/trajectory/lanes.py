"""Several plans side by side in one call of a pipeline, whose batch holds the samples of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tmpdiff_bench.pipelines.loop import Run
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.trajectory.replay import (
    Memo,
    Request,
    Running,
    StepRecord,
    cloned,
    latents_of,
    tensors_in,
)

Began = tuple[Request, Any]  # a call, and what it returns


class UnlikeError(Exception):
    """Rows that can't be told apart by sample, or not as they were before."""


@dataclass(frozen=True)
class _Rows:
    """Dimension `dim` of a tensor, or the entries of a list: blocks (passes of guidance, say), in
    each of which every sample has `each` rows in turn. How many blocks, may change from call to
    call.
    """

    dim: int
    each: int


@dataclass(frozen=True)
class Merging:
    """Where samples stand in what a denoiser is given, and in what it returns."""

    given: Any
    returned: Any

    @classmethod
    def learnt(cls, alone: Sequence[Began], both: Began) -> Merging:
        """From the calls for two samples `alone` and for `both`, which differ in nothing but their
        noise, and what they return.

        Raises:
            UnlikeError: samples can't be told apart, or the rows of one depend on the other's.
        """
        own, all_ = [(x.args, x.kwargs) for x, _ in alone], (both[0].args, both[0].kwargs)
        noise = _learnt([latents_of(*call) for call in own], latents_of(*all_), 1)
        each = noise.each if isinstance(noise, _Rows) else 1
        return cls(
            _learnt(own, all_, each), _learnt([output for _, output in alone], both[1], each)
        )

    def cut(self, request: Request, samples: Sequence[int], count: int, level: str) -> Request:
        """The part of a call for `count` samples that is some of theirs, to be run at a level."""
        args, kwargs = _cut(self.given, (request.args, request.kwargs), samples, count)
        return replace(request, level=level, args=args, kwargs=kwargs)

    def parts(self, output: Any, count: int, each: int) -> list[Any]:
        """An output in `count` parts of `each` samples."""
        every = torch.arange(count * each).view(count, each).tolist()
        return [_cut(self.returned, output, samples, count * each) for samples in every]

    def joined(self, outputs: Sequence[Any], each: int) -> Any:
        """The output of which these are parts of `each` samples."""
        return _joined(self.returned, outputs, each)


def _learnt(alone: Sequence[Any], both: Any, each: int) -> Any:
    """Where samples stand in a structure; `each` is that of the latents, and taken where rows are
    too alike to tell.
    """
    one = alone[0]
    if any(type(value) is not type(both) for value in alone):
        raise UnlikeError("values of different types")
    if isinstance(both, Mapping):
        if any(value.keys() != both.keys() for value in alone):
            raise UnlikeError("other names")
        return {k: _learnt([value[k] for value in alone], both[k], each) for k in both}
    if isinstance(both, Tensor):
        if one.ndim != both.ndim:
            raise UnlikeError("tensors of different dimensions")
        grown = [d for d in range(one.ndim) if one.shape[d] != both.shape[d]]
        if not grown:
            return _shared(alone, both)
        if len(grown) > 1 or 2 * one.shape[grown[0]] != both.shape[grown[0]]:
            raise UnlikeError("tensors that don't grow by a row a sample")
        return _fitting(alone, both, grown[0], one.shape[grown[0]], each)
    if isinstance(both, list | tuple):
        if len(one) == len(both):
            entries = zip(*alone, strict=True)
            return [_learnt(x, y, each) for x, y in zip(entries, both, strict=True)]
        if 2 * len(one) != len(both):
            raise UnlikeError("lists that don't grow by an entry a sample")
        return _fitting(alone, both, 0, len(one), each)
    return _shared(alone, both)


def _shared(alone: Sequence[Any], both: Any) -> Any:
    """The shape of what has no rows; of what is no tensor, none."""
    if not all(_alike(value, both) for value in alone):
        raise UnlikeError("samples differ in what has no rows")
    return both.shape if isinstance(both, Tensor) else None


def _fitting(alone: Sequence[Any], both: Any, dim: int, size: int, each: int) -> _Rows:
    """The order of rows in which each sample's are those that it has alone."""
    fit = [
        rows
        for rows in (_Rows(dim, n) for n in range(1, size + 1) if size % n == 0)
        if all(_alike(_cut(rows, both, [i], 2), value) for i, value in enumerate(alone))
    ]
    if not fit:
        raise UnlikeError("rows of samples depend on others")
    return next((rows for rows in fit if rows.each == each), fit[0])


def _alike(mine: Any, other: Any) -> bool:
    """Whether two values are the same but for rounding."""
    if isinstance(mine, Tensor | list | tuple):
        pairs = list(zip(tensors_in(mine), tensors_in(other), strict=True))
        return all(_close(x, y) for x, y in pairs) and (bool(pairs) or mine == other)
    return bool(mine == other)


def _close(x: Tensor, y: Tensor) -> bool:
    if x.shape != y.shape:
        return False
    if not x.is_floating_point() or not x.numel():
        return torch.equal(x, y)
    return bool((x - y).abs().max() <= torch.finfo(x.dtype).eps ** 0.5 * y.abs().max())


def _cut(layout: Any, value: Any, samples: Sequence[int], count: int) -> Any:
    """The part of a structure for `count` samples that is some of theirs."""
    if isinstance(layout, dict):
        return _like(value, {k: _cut(layout.get(k), value[k], samples, count) for k in value})
    if isinstance(layout, list):
        if not isinstance(value, list | tuple) or len(layout) != len(value):
            raise UnlikeError("another structure than before")
        entries = zip(layout, value, strict=True)
        return type(value)([_cut(*entry, samples, count) for entry in entries])
    if not isinstance(layout, _Rows):
        if layout != getattr(value, "shape", None) or (layout is None and any(tensors_in(value))):
            raise UnlikeError("other tensors than before")
        return value
    if not isinstance(value, Tensor | list | tuple):
        raise UnlikeError("no rows, as there were before")
    size = value.shape[layout.dim] if isinstance(value, Tensor) else len(value)
    if size % (count * layout.each):
        raise UnlikeError("another number of rows than before")
    shape = size // (count * layout.each), count, layout.each
    if isinstance(value, Tensor):
        index = torch.as_tensor(samples, device=value.device)
        found = value.unflatten(layout.dim, shape).index_select(layout.dim + 1, index)
        return found.flatten(layout.dim, layout.dim + 2)
    rows = torch.arange(size).view(shape)[:, list(samples)].flatten().tolist()
    return type(value)([value[row] for row in rows])


def _joined(layout: Any, values: Sequence[Any], each: int) -> Any:
    """The structure whose parts are `values`, of `each` samples, in their order."""
    first = values[0]
    if isinstance(layout, dict):
        return _like(first, {k: _joined(layout[k], [v[k] for v in values], each) for k in first})
    if isinstance(layout, list):
        entries = zip(layout, zip(*values, strict=True), strict=True)
        return type(first)([_joined(*entry, each) for entry in entries])
    if not isinstance(layout, _Rows):
        return cloned(first)
    if isinstance(first, Tensor):
        inner = [x.unflatten(layout.dim, (-1, each * layout.each)) for x in values]
        return torch.cat(inner, layout.dim + 1).flatten(layout.dim, layout.dim + 1)
    block = each * layout.each
    starts = range(0, len(first), block)
    return type(first)(
        [cloned(x) for i in starts for value in values for x in value[i : i + block]]
    )


def _like(value: Any, entries: Mapping[str, Any]) -> Any:
    """A mapping of the same kind with other entries."""
    return entries if type(value) is dict else type(value)(**entries)


Levels = tuple[str, ...]


class Lanes(Running):
    """Directs one run of several plans: a lane is the batch of samples of one of them. Of lanes
    that have gone the same way so far, a denoiser runs one; of those at one level, as many at a
    time as hold `most` plans. Steps of a plan in `known` are replayed, and others told to `keep`.

    Raises `UnlikeError`, from within the run, where lanes can't be told apart, and
    `NonFiniteLatentsError` as `Replay`, without saying of which plan.
    """

    def __init__(
        self,
        plans: Sequence[PrecisionPlan],
        known: Sequence[Mapping[int, StepRecord]],
        memo: Memo,
        merging: Merging,
        *,
        samples: int,
        most: int,
        compute: Callable[[Request], Any],
        keep: Callable[[Levels, StepRecord], None],
    ) -> None:
        super().__init__(memo, len(plans[0]))
        self._plans, self._merging, self._samples, self._most = plans, merging, samples, most
        self._compute, self._keep = compute, keep
        self._known = {
            plan.levels[min(records) : step + 1]: record
            for plan, records in zip(plans, known, strict=True)
            for step, record in records.items()
        }
        self._new: dict[Levels, StepRecord] = {}

    def _within(self, name: str, step: int, run: Run, args: Any, kwargs: Any) -> Any:
        raise UnlikeError(f"{name} is called in the loop, beside denoisers")

    def denoise(self, place: str, step: int, run: Run, args: Any, kwargs: Any) -> Any:
        number = self._next(step)
        ways = [plan.levels[self.first : step + 1] for plan in self._plans]
        lane = {way: ways.index(way) for way in dict.fromkeys(ways)}  # the first that goes it
        request = Request(place, None, run, args, kwargs)
        for level in dict.fromkeys(way[-1] for way in lane):
            new = [way for way in lane if way[-1] == level and way not in self._known]
            calls = math.ceil(len(new) / self._most)
            for call in range(calls):  # of even size, as small ones are slow
                self._run(request, level, {way: lane[way] for way in new[call::calls]})
        held = {way: self._known.get(way) or self._new[way] for way in lane}
        return self._merging.joined([held[way].outputs[number] for way in ways], self._samples)

    def _run(self, request: Request, level: str, lanes: Mapping[Levels, int]) -> None:
        """One call of the denoiser, for some lanes."""
        n = self._samples
        rows = [lane * n + i for lane in lanes.values() for i in range(n)]
        asked = self._merging.cut(request, rows, n * len(self._plans), level)
        parts = self._merging.parts(self._compute(asked), len(lanes), n)
        for way, part in zip(lanes, parts, strict=True):
            record = self._new.setdefault(way, StepRecord())
            record.outputs.append(part)
            record.rows += asked.rows // len(lanes)

    def advance(self, step: int, last: bool, run: Run, args: Any, kwargs: Any) -> Any:
        result = run(*args, **kwargs)
        latents = result if isinstance(result, Tensor) else result[0]
        if self._new:
            self._check(latents, f"step {step} of some plan")
        if last:
            self.latents = latents
            for way, record in self._new.items():
                self._keep(way, record)
            self._new, self._number = {}, 0
        return result

    def finals(self, output: Any) -> list[Tensor]:
        """Final latents of each plan, of what the pipeline returned."""
        whole = output if isinstance(output, Tensor) else self.latents
        if len(whole) != self._samples * len(self._plans):
            raise UnlikeError("latents have not a row a sample")
        return list(whole.float().cpu().chunk(len(self._plans)))
