"""Several plans side by side in one call of a pipeline, whose batch holds the samples of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from tmpdiff_bench.pipelines.loop import Run
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.trajectory.merging import Merging, UnlikeError
from tmpdiff_bench.trajectory.replay import Memo, Request, Running, StepRecord

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
