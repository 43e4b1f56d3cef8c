"""Prefix-tree evaluation: every distinct prefix of all plans asked for runs once, while memory
lasts. A plan is one call of the pipeline, in which what is known of it is replayed.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.levels import Level, LevelBank
from tmpdiff_bench.levels.devices import is_reference
from tmpdiff_bench.levels.memory import Memory
from tmpdiff_bench.pipelines.calls import Call
from tmpdiff_bench.pipelines.layers import resolve_layers
from tmpdiff_bench.pipelines.loop import denoisers, directed, eager
from tmpdiff_bench.pipelines.schedule import Schedule
from tmpdiff_bench.plan import PrecisionPlan, check_lengths
from tmpdiff_bench.trajectory.merging import Merging, UnlikeError
from tmpdiff_bench.trajectory.outputs import as_images, calling, returns_latents
from tmpdiff_bench.trajectory.replay import (
    EncodedError,
    Encoding,
    Memo,
    NonFiniteLatentsError,
    Perturbation,
    Replay,
    Request,
    StepRecord,
    tensors_in,
)
from tmpdiff_bench.trajectory.strands import run_together, twin

MAX_BATCH = 32
STATE_MEMORY = 2**30
Memos = dict[tuple[Any, ...], Memo]
_Prefix = tuple[int, tuple[str, ...]]  # a batch of samples, and the levels so far


@dataclass(frozen=True)
class PlanRun:
    """`path` (S, n, ...): latents after every step that ran; `final` (n, ...): what the pipeline
    returns; both float32 on the CPU. `images()` decodes by the pipeline's own path, (n, 3, H, W) in
    [0, 1], frames of a video one below the other; ask before the next plan is run.
    """

    path: Tensor
    final: Tensor
    images: Callable[[], Tensor]


class PrefixEngine:
    """Runs plans on the n samples of `call`, by the pipeline's own `__call__`.

    `banks` has the levels of each denoiser; none are needed to `encode`. Up to `max_batch` samples
    run as one batch. At most `state_memory` bytes of steps are held: those of the plan in hand, and
    of others what was used last, so that later plans go on from the longest prefix they share with
    earlier ones. `perturb` changes the latents that denoisers are given; `on_nfe` is told the
    network evaluations just spent. `memos`, a dictionary handed to several engines of one pipeline
    and the same shared arguments, lets them share what encoders returned for a batch: for the same
    seeds and the same objects as per-sample arguments.

    `nfe` counts network evaluations spent, `peak_memory` the most bytes of steps ever held.
    """

    def __init__(
        self,
        pipe: Any,
        banks: Mapping[str, LevelBank],
        call: Call,
        *,
        max_batch: int = MAX_BATCH,
        state_memory: int = STATE_MEMORY,
        perturb: Perturbation | None = None,
        on_nfe: Callable[[int], None] | None = None,
        memos: Memos | None = None,
    ) -> None:
        if max_batch < 1:
            raise UsageError(f"--max-batch is {max_batch}: at least 1 is needed")
        denoisers(pipe)
        self.pipe, self.banks, self.call = pipe, banks, call
        self.nfe = 0
        self.schedule: Schedule | None = None
        self._asked = 0
        count = math.ceil(len(call) / max_batch)
        self._batches = [x.tolist() for x in torch.arange(len(call)).tensor_split(count)]
        self._beside = max(1, max_batch // len(self._batches[0]))  # plans run side by side
        self._memos = [self._memo(rows, {} if memos is None else memos) for rows in self._batches]
        self._perturb, self._on_nfe = perturb, on_nfe
        self._first = 0  # the step that runs begin with
        self._rows: dict[int, int] = {}  # through denoisers, by step of the first batch
        self._steps, self._finals = _Held(state_memory), _Held(state_memory)
        self._failed: dict[tuple[str, ...], NonFiniteLatentsError] = {}
        self._latent = returns_latents(pipe)

    @property
    def peak_memory(self) -> int:
        """Most bytes of steps ever held."""
        return self._steps.peak

    @property
    def nfe_per_step(self) -> list[int]:
        """Network evaluations of one sample, by step; known once a plan has run."""
        steps = self.schedule.steps if self.schedule else 0
        each = len(self._batches[0])
        return [math.ceil(self._rows.get(step, 0) / each) for step in range(steps)]

    @property
    def plain_nfe(self) -> int:
        """What one call of the pipeline per plan asked for would have spent."""
        return self._asked * len(self.call) * sum(self.nfe_per_step)

    @property
    def first(self) -> int:
        """The step that runs begin with: image-to-image calls begin in the middle."""
        return self._first

    @torch.no_grad()
    def encode(self) -> None:
        """Run all that comes before the first call of a denoiser; then text encoders can be freed,
        and weights of denoisers loaded.
        """
        for rows, memo in zip(self._batches, self._memos, strict=True):
            if not memo.whole:
                self._begun(rows, memo)

    @torch.no_grad()
    def evaluate(self, plans: Sequence[PrecisionPlan]) -> Tensor:
        """Final latents (P, n, ...) of P plans, float32 on the CPU.

        Plans run side by side, as many as `max_batch` allows, and calls of a denoiser at one level
        are joined to one where that is possible: so the last bits of a run depend on the other
        plans. With `max_batch` samples in the engine, or one plan, they don't.

        Raises:
            NonFiniteLatentsError: a step produced NaN or infinity.
            UsageError: plans of unequal length or not of the schedule's, or an unknown level.
        """
        indices = self._indices(plans)
        order = depth_first(list(indices))
        found: dict[int, Tensor] = {}
        for start in range(0, len(order), self._beside):
            group = order[start : start + self._beside]
            for plan, final in zip(group, self._evaluated(group), strict=True):
                found |= dict.fromkeys(indices[plan], final)
        return torch.stack([found[i] for i in range(len(plans))])

    def each(
        self, plans: Sequence[PrecisionPlan]
    ) -> Iterator[tuple[int, PlanRun | NonFiniteLatentsError]]:
        """Runs one after the other, each as soon as it is done: a plan's index, and its run, or
        what made it fail. Depth first, the first plan first: every prefix is run once, and a run
        does not depend on the other plans by a bit. Raises `UsageError` as `evaluate`.
        """
        indices = self._indices(plans)
        for plan in depth_first(list(indices)):
            run = self._run(plan)
            for i in indices[plan]:
                yield i, run

    @torch.no_grad()
    def images(self, plan: PrecisionPlan) -> Tensor:
        """A plan's images (n, 3, H, W) in [0, 1], float32 on the CPU."""
        batches = range(len(self._batches))
        return torch.cat([as_images(self._called(b, plan, "np")[0]) for b in batches])

    def _indices(self, plans: Sequence[PrecisionPlan]) -> dict[PrecisionPlan, list[int]]:
        """Where each different plan stands."""
        check_lengths(plans)
        for level in dict.fromkeys(level for plan in plans for level in plan):
            for bank in self.banks.values():
                bank.check(level)
        self._asked += len(plans)
        indices: dict[PrecisionPlan, list[int]] = {}
        for i, plan in enumerate(plans):
            indices.setdefault(plan, []).append(i)
        return indices

    def _check_failed(self, plan: PrecisionPlan) -> None:
        for end in range(1, len(plan) + 1):
            if failure := self._failed.get(plan.levels[:end]):
                raise failure

    @torch.no_grad()
    def _run(self, plan: PrecisionPlan) -> PlanRun | NonFiniteLatentsError:
        try:
            self._check_failed(plan)
            runs = [self._go(batch, plan) for batch in range(len(self._batches))]
        except NonFiniteLatentsError as error:
            return error
        path = torch.cat([torch.stack(latents) for _, latents in runs], dim=1)
        return PlanRun(path, torch.cat([final for final, _ in runs]), partial(self.images, plan))

    def _evaluated(self, plans: Sequence[PrecisionPlan]) -> list[Tensor]:
        """Final latents of some plans, run side by side."""
        parts: dict[tuple[int, PrecisionPlan], Tensor] = {}
        for plan in plans:
            self._check_failed(plan)
        for batch in range(len(self._batches)):
            missing = []
            for plan in plans:
                final = self._finals.get(self._key(batch, plan, len(plan)))
                if final is None:
                    missing.append(plan)
                else:
                    parts[batch, plan] = final
            if len(missing) > 1 and self._merging is not None:
                held: set[_Prefix] = set()
                go = partial(self._go, batch, held=held)
                bodies = [partial(go, plan, twin(self.pipe)) for plan in missing]
                finals = [final for final, _ in run_together(bodies, self._answers)]
            else:
                finals = [self._go(batch, plan)[0] for plan in missing]
            parts |= {(batch, plan): x for plan, x in zip(missing, finals, strict=True)}
        return [torch.cat([parts[b, p] for b in range(len(self._batches))]) for p in plans]

    def _answers(self, requests: Sequence[Request]) -> list[Any]:
        """Outputs of calls that are made at one place of the loop."""
        different = {request.prefix: request for request in requests}  # the others are the same
        alike: dict[tuple[str, str | None], list[Request]] = {}
        for request in different.values():
            alike.setdefault((request.place, request.level), []).append(request)
        found: dict[tuple[str, ...], Any] = {}
        for group in alike.values():
            outputs = self._joined(group)
            found |= {request.prefix: x for request, x in zip(group, outputs, strict=True)}
        return [found[request.prefix] for request in requests]

    def _joined(self, requests: Sequence[Request]) -> list[Any]:
        """Outputs of calls at one level, by one call if possible."""
        if len(requests) > 1 and requests[0].level is not None and self._merging is not None:
            with suppress(UnlikeError):
                joined = self._merging.joined(requests)
                return self._merging.parted(self._output(joined), len(requests))
        return [self._output(request) for request in requests]

    def _output(self, request: Request) -> Any:
        """What a module returns, at its level."""
        if request.level is None:
            return request.output()
        rows = request.rows
        with self.banks[request.place].at(request.level):
            output = request.output()
        self.nfe += rows
        if self._on_nfe is not None:
            self._on_nfe(rows)
        return output

    @cached_property
    def _merging(self) -> Merging | None:
        """How calls of the denoiser are joined; None where they can't be."""
        if any(hasattr(part, "register_modules") for part in vars(self.pipe).values()):
            return None  # a pipeline of pipelines, of which no twin can be made
        try:
            small, large = (self._begun([0] * count, Memo()) for count in (2, 3))
            return Merging.tried(small, large, Request.output)
        except Exception:  # whatever it is: runs one by one will meet it, or need not
            return None

    def _begun(self, rows: Sequence[int], memo: Memo) -> Request:
        """Run all that comes before the loop: the call of a denoiser that it begins with."""
        encoding, pipe = Encoding(memo), self.pipe
        with suppress(EncodedError), calling(pipe, encoding.started), directed(pipe, encoding):
            pipe(**self.call.arguments(rows), return_dict=False)
        if encoding.came_to is None:
            raise UsageError(f"a {type(pipe).__name__} was run and called no denoiser")
        return encoding.came_to

    def _go(
        self,
        batch: int,
        plan: PrecisionPlan,
        pipe: Any = None,
        ask: Callable[[Request], Any] | None = None,
        *,
        held: set[_Prefix] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Final latents of a batch, and those after every step."""
        output, path = self._called(
            batch, plan, "latent" if self._latent else "np", pipe, ask, held
        )
        final = output if isinstance(output, Tensor) else path[-1]
        final = final[: len(self._batches[batch])].float().cpu()
        self._finals.put(self._key(batch, plan, len(plan)), final, final.nbytes)
        return final, path

    def _called(
        self,
        batch: int,
        plan: PrecisionPlan,
        output: str,
        pipe: Any = None,
        ask: Callable[[Request], Any] | None = None,
        held: set[_Prefix] | None = None,
    ) -> tuple[Any, list[Tensor]]:
        """What the pipeline (or its twin) returns for a batch, and the latents after every step;
        `ask` gives outputs, `held` are steps needed by runs beside this one.
        """
        pipe = self.pipe if pipe is None else pipe
        rows, known = self._batches[batch], self._known(batch, plan)
        needed = set() if held is None else held
        needed |= {self._key(batch, plan, step + 1) for step in known}
        path: list[Tensor] = []

        def keep(step: int, record: StepRecord) -> None:
            self._first = replay.first or 0
            key = self._key(batch, plan, step + 1)
            needed.add(key)
            size = sum(tensor.nbytes for tensor in tensors_in(record.outputs))
            self._steps.put(key, record, size, needed)
            if not batch:
                self._rows[step] = record.rows

        replay = Replay(
            plan,
            known,
            self._memos[batch],
            compute=ask or self._output,
            keep=keep,
            path=lambda x: path.append(x[: len(rows)].to("cpu", torch.float32, copy=True)),
            perturb=self._perturb,
        )
        try:
            with calling(pipe, replay.started), directed(pipe, replay, shared=ask is not None):
                found = pipe(**self.call.arguments(rows), output_type=output, return_dict=False)
        except NonFiniteLatentsError as error:
            self._failed[plan.levels[: replay.failed_at]] = error
            raise
        replay.end(type(pipe).__name__)
        self.schedule = replay.schedule
        return found[0], path

    def _known(self, batch: int, plan: PrecisionPlan) -> dict[int, StepRecord]:
        """The steps of a plan that are held, from the first one on without a gap."""
        known: dict[int, StepRecord] = {}
        for step in range(self._first, len(plan)):
            record = self._steps.get(self._key(batch, plan, step + 1))
            if record is None:
                break
            known[step] = record
        return known

    def _key(self, batch: int, plan: PrecisionPlan, end: int) -> _Prefix:
        return batch, plan.levels[self._first : end]

    def _memo(self, rows: Sequence[int], memos: Memos) -> Memo:
        """That of a batch."""
        given = tuple(values[row] for values in self.call.each.values() for row in rows)
        key = tuple(self.call.seeds[row] for row in rows), tuple(map(id, given))
        return memos.setdefault(key, Memo(given))


def level_banks(
    pipe: Any,
    levels: Sequence[str],
    *,
    quantized: Sequence[str] | None = None,
    calibrate: Callable[[], object] | None = None,
    residency: str = "resident",
    announce: Callable[[Memory], object] | None = None,
) -> dict[str, LevelBank]:
    """The levels of each denoiser of a pipeline, by its place; `announce` is told what they take
    before they are made. Of two denoisers, each needs some of the layers in `quantized`.

    Raises:
        UsageError: as `denoisers`, `resolve_layers` and `LevelBank`.
    """
    there = {place: eager(module) for place, module in denoisers(pipe).items()}
    names = {place: _layers_of(place, there, quantized) for place in there}
    for place, denoiser in there.items():
        new = [x for x in levels if not is_reference(Level.parse(x), denoiser)]
        if announce is not None and new:
            announce(LevelBank.memory(denoiser, new, names[place], residency))
    return {
        place: LevelBank(denoiser, levels, names[place], calibrate, residency)
        for place, denoiser in there.items()
    }


def _layers_of(
    place: str, there: Mapping[str, nn.Module], quantized: Sequence[str] | None
) -> tuple[str, ...]:
    """The layers that levels change in the denoiser at a place."""
    if not quantized or len(there) == 1:
        return resolve_layers(there[place], quantized)
    known = {other: dict(module.named_modules()) for other, module in there.items()}
    mine: list[str] = []
    for name in quantized:
        bare = name.removesuffix(".base_layer")
        if bare in known[place] or not any(bare in modules for modules in known.values()):
            mine.append(name)  # where it is in none, the error names it
    if not mine:
        raise UsageError(
            f"quantized= names no layer of {place}: name some, as plans change all denoisers"
        )
    return resolve_layers(there[place], mine)


def depth_first(plans: Sequence[PrecisionPlan]) -> list[PrecisionPlan]:
    """Different plans ordered so that those with a common prefix stand together, the first one
    first: siblings by their first appearance.
    """
    order: dict[tuple[str, ...], int] = {}
    for plan in plans:
        for end in range(1, len(plan) + 1):
            order.setdefault(plan.levels[:end], len(order))
    return sorted(plans, key=lambda p: [order[p.levels[:end]] for end in range(1, len(p) + 1)])


class _Held:
    """Values by prefix within a number of bytes; those used last stay. `peak` is the most there
    were.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._bytes, self.peak = limit, 0, 0
        self._values: OrderedDict[_Prefix, tuple[Any, int]] = OrderedDict()

    def get(self, key: _Prefix) -> Any:
        """A value that is held, now the one used last; None where it isn't."""
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key][0]

    def put(self, key: _Prefix, value: Any, size: int, needed: Container[_Prefix] = ()) -> bool:
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
