"""Prefix-tree evaluation: every distinct prefix of all plans asked for runs once, while memory
lasts. A plan is one call of the pipeline, in which what is known of it is replayed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from tmpdiff_bench.errors import UsageError, first_line
from tmpdiff_bench.levels import Level, LevelBank
from tmpdiff_bench.levels.devices import is_reference
from tmpdiff_bench.levels.leaf import compute_dtype
from tmpdiff_bench.levels.residency import Memory
from tmpdiff_bench.pipelines.calls import Call, as_images, calling, returns_latents
from tmpdiff_bench.pipelines.layers import resolve_layers
from tmpdiff_bench.pipelines.loop import denoisers, directed, eager, undone
from tmpdiff_bench.pipelines.own import OwnModules
from tmpdiff_bench.pipelines.schedule import Schedule
from tmpdiff_bench.plan import PrecisionPlan, check_lengths
from tmpdiff_bench.trajectory.lanes import Began, Lanes, Merging
from tmpdiff_bench.trajectory.replay import (
    EncodedError,
    Encoding,
    Held,
    Memo,
    NonFiniteLatentsError,
    Perturbation,
    Prefix,
    Replay,
    Request,
    Running,
    StepRecord,
    tensors_in,
)

MAX_BATCH = 16
STATE_MEMORY = 2**30
LANES = 8  # times as many plans go through a pipeline at once as through its denoiser
Memos = dict[tuple[Any, ...], Memo]


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
        self._together = max(1, max_batch // len(self._batches[0]))  # plans in a denoiser's call
        self._kept: Memos = {} if memos is None else memos
        self._memos = [self._memo(self.call.rows(rows)) for rows in self._batches]
        self._perturb, self._on_nfe = perturb, on_nfe
        self._first = 0  # the step that runs begin with
        self._rows: dict[int, int] = {}  # through denoisers, by step of the first batch
        self._steps, self._finals = Held(state_memory), Held(state_memory)
        self._failed: dict[tuple[str, ...], NonFiniteLatentsError] = {}
        self._last = "latent" if returns_latents(pipe) else "np"

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
                self._begun(self.call.rows(rows), memo)

    @torch.no_grad()
    def evaluate(self, plans: Sequence[PrecisionPlan]) -> Tensor:
        """Final latents (P, n, ...) of P plans, float32 on the CPU.

        Plans run side by side in one call of the pipeline, where a trial shows that its rows don't
        depend on others, and a denoiser's rows at one level run together, up to `max_batch` samples
        of them: so the last bits of a run depend on the other plans. With `max_batch` samples in
        the engine, or one plan, they don't.

        Raises:
            NonFiniteLatentsError: a step produced NaN or infinity.
            UsageError: plans of unequal length or not of the schedule's, or an unknown level.
        """
        indices = self._indices(plans)
        order = depth_first(list(indices))
        found: dict[int, Tensor] = {}
        beside = LANES * self._together if self._together > 1 else 1
        for start in range(0, len(order), beside):
            group = order[start : start + beside]
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
            finals = self._side_by_side(batch, missing) if len(missing) > 1 else None
            if finals is None:
                finals = [self._go(batch, plan)[0] for plan in missing]
            parts |= {(batch, plan): x for plan, x in zip(missing, finals, strict=True)}
        return [torch.cat([parts[b, p] for b in range(len(self._batches))]) for p in plans]

    def _side_by_side(self, batch: int, plans: Sequence[PrecisionPlan]) -> list[Tensor] | None:
        """Final latents of a batch by one call of the pipeline for all plans; None where it can't
        be done, or where one of them fails: alone, it will tell.
        """
        if self._merging is None:
            return None
        rows = self._batches[batch]
        call = self.call.rows(rows * len(plans))
        known = [self._known(batch, plan) for plan in plans]
        needed = {
            self._key(batch, plan, step + 1)
            for plan, records in zip(plans, known, strict=True)
            for step in records
        }
        lanes = Lanes(
            plans,
            known,
            self._memo(call),
            self._merging,
            samples=len(rows),
            most=self._together,
            compute=self._output,
            keep=lambda way, record: self._hold(batch, way, record, needed, lanes),
        )
        try:
            finals = lanes.finals(self._through(lanes, call, self._last))
        except NonFiniteLatentsError:
            return None
        except Exception:  # whatever it is: runs one by one will meet it, or need not
            self._merging = None
            return None
        for plan, final in zip(plans, finals, strict=True):
            self._finals.put(self._key(batch, plan, len(plan)), final, final.nbytes)
        return finals

    def _output(self, request: Request) -> Any:
        """What a module returns, at its level."""
        if request.level is None:
            return request.output()
        rows = request.rows
        bank = self.banks[request.place]
        output = bank.run(request.level, request.run, *request.args, **request.kwargs)
        self.nfe += rows
        if self._on_nfe is not None:
            self._on_nfe(rows)
        return output

    @cached_property
    def _merging(self) -> Merging | None:
        """How rows of a denoiser are told apart; None where they can't be."""
        if self._perturb is not None:
            return None
        row, seed = self._batches[0][0], self.call.seeds[0]
        both = replace(self.call.rows([row, row]), seeds=(seed, seed + 1))
        try:
            calls = both.rows([0]), both.rows([1]), both
            first, second, joined = (self._begun(call, Memo(), further=True) for call in calls)
            return Merging.learnt([first, second], joined)
        except Exception:  # whatever it is: runs one by one will meet it, or need not
            return None

    def _begun(self, call: Call, memo: Memo, *, further: bool = False) -> Began:
        """Run all that comes before the loop: the call of a denoiser that it begins with, and,
        with `further`, what it returns.
        """
        encoding, pipe = Encoding(memo, further=further), self.pipe
        watched = calling(pipe, encoding.started), directed(pipe, encoding)
        with undone(denoisers(pipe).values()), suppress(EncodedError), watched[0], watched[1]:
            pipe(**call.arguments(), return_dict=False)
        if encoding.came_to is None:
            raise UsageError(f"a {type(pipe).__name__} was run and called no denoiser")
        return encoding.came_to, encoding.returned

    def _go(self, batch: int, plan: PrecisionPlan) -> tuple[Tensor, list[Tensor]]:
        """Final latents of a batch, and those after every step."""
        output, path = self._called(batch, plan, self._last)
        final = output if isinstance(output, Tensor) else path[-1]
        final = final[: len(self._batches[batch])].float().cpu()
        self._finals.put(self._key(batch, plan, len(plan)), final, final.nbytes)
        return final, path

    def _called(self, batch: int, plan: PrecisionPlan, output: str) -> tuple[Any, list[Tensor]]:
        """What the pipeline returns for a batch, and the latents after every step."""
        rows, known = self._batches[batch], self._known(batch, plan)
        needed = {self._key(batch, plan, step + 1) for step in known}
        path: list[Tensor] = []

        def keep(step: int, record: StepRecord) -> None:
            way = plan.levels[replay.first : step + 1]
            needed.add((batch, way))
            self._hold(batch, way, record, needed, replay)

        replay = Replay(
            plan,
            known,
            self._memos[batch],
            compute=self._output,
            keep=keep,
            path=lambda x: path.append(x[: len(rows)].to("cpu", torch.float32, copy=True)),
            perturb=self._perturb,
        )
        try:
            return self._through(replay, self.call.rows(rows), output), path
        except NonFiniteLatentsError as error:
            self._failed[plan.levels[: replay.failed_at]] = error
            raise
        except Exception as error:
            if isinstance(error, UsageError) or not replay.replaying:
                raise
            raise UsageError(
                f"{type(self.pipe).__name__} reads more of its denoiser than what it returns "
                f"({first_line(error)}): its steps can't be replayed, and not be recorded"
            ) from error

    def _through(self, running: Running, call: Call, output: str) -> Any:
        """What a call of the pipeline returns, directed to its end."""
        with calling(self.pipe, running.started), directed(self.pipe, running):
            found = self.pipe(**call.arguments(), output_type=output, return_dict=False)
        running.end(type(self.pipe).__name__)
        self.schedule = running.schedule
        return found[0]

    def _hold(
        self,
        batch: int,
        way: tuple[str, ...],
        record: StepRecord,
        needed: Container[Prefix],
        running: Running,
    ) -> None:
        """Hold a step that has been run."""
        self._first = running.first or 0
        size = sum(tensor.nbytes for tensor in tensors_in(record.outputs))
        self._steps.put((batch, way), record, size, needed)
        if not batch:
            self._rows[self._first + len(way) - 1] = record.rows

    def _known(self, batch: int, plan: PrecisionPlan) -> dict[int, StepRecord]:
        """The steps of a plan that are held, from the first one on without a gap."""
        known: dict[int, StepRecord] = {}
        for step in range(self._first, len(plan)):
            record = self._steps.get(self._key(batch, plan, step + 1))
            if record is None:
                break
            known[step] = record
        return known

    def _key(self, batch: int, plan: PrecisionPlan, end: int) -> Prefix:
        return batch, plan.levels[self._first : end]

    def _memo(self, call: Call) -> Memo:
        """That of the samples of a call."""
        given = tuple(value for values in call.each.values() for value in values)
        return self._kept.setdefault((tuple(call.seeds), tuple(map(id, given))), Memo(given))


def level_banks(
    pipe: Any,
    levels: Sequence[str],
    *,
    quantized: Sequence[str] | None = None,
    calibrate: Callable[[], object] | None = None,
    residency: str = "resident",
    modules: OwnModules | None = None,
    announce: Callable[[Memory], object] | None = None,
) -> dict[str, LevelBank]:
    """The levels of each denoiser of a pipeline, by its place, those that are `modules` among them;
    `announce` is told what they take before they are made. Of two denoisers, each needs some of the
    layers in `quantized`.

    Raises:
        UsageError: as `denoisers`, `resolve_layers`, `OwnModules.of` and `LevelBank`.
    """
    there = {place: eager(module) for place, module in denoisers(pipe).items()}
    named = modules is None or not {*levels} <= {*modules.given}
    names = {place: _layers_of(place, there, quantized) if named else () for place in there}
    own = {
        place: modules.of(place, module, compute_dtype(module)) if modules else {}
        for place, module in there.items()
    }
    for place, denoiser in there.items():
        new = [x for x in levels if x in own[place] or not is_reference(Level.parse(x), denoiser)]
        if announce is not None and new:
            announce(LevelBank.memory(denoiser, new, names[place], residency, own[place]))
    return {
        place: LevelBank(denoiser, levels, names[place], calibrate, residency, own[place])
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
