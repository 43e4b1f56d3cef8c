"""Measured cost tables: whole plans, timed in turn, each level in a process of its own."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import cycle, islice

from tqdm import tqdm

from tmpdiff_bench.costs.isolation import MIN_REPEATS, RANDOM, Subject, Worker, median_cost
from tmpdiff_bench.costs.table import NATIVE, Cost, CostTable
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.experiment import check_own_names
from tmpdiff_bench.levels.level import SIMULATED, Level
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.trajectory.recording import call_words

_PAUSE = 0.02  # seconds in which the threads of the process before go to sleep


@dataclass(frozen=True)
class PlanCheck:
    """A plan's predicted and measured whole-plan time, and where they part, in ms.

    `predicted` is the table's, from uniform plans in processes of their own. `together` is what the
    same steps cost more in a process that holds all levels; `rest` is what neither that nor the
    switches explain. `speedup` is measured: median over rounds of the reference plan's time over
    this plan's, both in the process that holds all levels.
    """

    plan: PrecisionPlan
    predicted: float
    measured: Cost
    predicted_speedup: float
    speedup: Cost
    together: float
    switches: float
    rest: float


@dataclass(frozen=True)
class Measurement:
    """A measured table, speedups of its levels (paired by round), and the plans checked."""

    table: CostTable
    speedups: Mapping[str, Cost]
    checks: tuple[PlanCheck, ...]


def measure(
    subject: Subject, *, repeats: int, plans: Sequence[PrecisionPlan] = (), seed: int = 0
) -> Measurement:
    """Time a subject's levels (`levels[0]` is the reference), their switches, and `plans`.

    Every level runs uniform plans in a process of its own; one more process holds all levels and
    runs them uniform, alternating, in blocks of one level each, and along `plans`. In each of
    `repeats` rounds everything runs once, in random order, after one untimed round.

    Raises:
        UsageError: a simulated level, too few steps or repeats, a plan of another length or with
            another level, or what loading the model says.
    """
    _check(subject, repeats, plans)
    steps, levels = subject.steps, subject.levels
    alternating = PrecisionPlan(tuple(islice(cycle(levels), steps)))
    blocks = PrecisionPlan(tuple(sorted(alternating, key=levels.index)))
    uniform = {level: PrecisionPlan.uniform(level, steps) for level in levels}
    jobs: list[tuple[str, PrecisionPlan]] = [(level, uniform[level]) for level in levels]
    mixed = dict.fromkeys((alternating, blocks, *uniform.values(), *plans))
    jobs += [("", plan) for plan in mixed]
    with ExitStack() as stack, tqdm(total=len(levels) + 1, desc="loading", leave=False) as bar:
        workers = {}
        # the one with all levels comes first, alone: what can't be loaded is known after one load
        workers[""] = stack.enter_context(closing(Worker(subject)))
        about = workers[""].wait()
        bar.update()
        for level in levels:
            workers[level] = stack.enter_context(closing(Worker(_alone(subject, level))))
        for level in levels:
            workers[level].wait()
            bar.update()
        times = _rounds(workers, jobs, repeats, random.Random(seed))
    environment = about["environment"]
    alone = {level: [t / steps for t in times[level, uniform[level]]] for level in levels}
    extra = alternating.switches - blocks.switches
    pairs = zip(times["", alternating], times["", blocks], strict=True)
    table = CostTable(
        name=_name(subject, environment["device"]),
        kind="measured",
        model=about["title"],
        device=environment["device"],
        levels={level: median_cost(alone[level]) for level in levels},
        switch=median_cost([(a - b) / extra for a, b in pairs]),
        setting={
            "steps": steps,
            "batch": subject.batch,
            **_how(subject),
            "threads": environment["threads"],
            "repeats": repeats,
        },
        versions={k: v for k, v in environment.items() if isinstance(v, str) and k != "device"},
    )
    together = {plan: times["", plan] for plan in mixed}
    return Measurement(
        table,
        {level: _ratio(alone[levels[0]], alone[level]) for level in levels},
        tuple(_compare(table, plan, together, uniform) for plan in dict.fromkeys(plans)),
    )


def _alone(subject: Subject, level: str) -> Subject:
    own = {name: path for name, path in subject.modules.items() if name == level}
    return replace(subject, levels=(level,), modules=own)


def _rounds(
    workers: Mapping[str, Worker],
    jobs: Sequence[tuple[str, PrecisionPlan]],
    repeats: int,
    rng: random.Random,
) -> dict[tuple[str, PrecisionPlan], list[float]]:
    """Times (ms) of each job in each round; the first round warms up and is not kept."""
    times: dict[tuple[str, PrecisionPlan], list[float]] = {job: [] for job in jobs}
    with tqdm(total=(repeats + 1) * len(jobs), desc="timing plans", leave=False) as bar:
        for round_ in range(repeats + 1):
            for job in rng.sample(jobs, len(jobs)):
                time.sleep(_PAUSE)
                elapsed = 1e3 * workers[job[0]].seconds(job[1])
                if round_:
                    times[job].append(elapsed)
                bar.update()
    return times


def _compare(
    table: CostTable,
    plan: PrecisionPlan,
    together: Mapping[PrecisionPlan, Sequence[float]],
    uniform: Mapping[str, PrecisionPlan],
) -> PlanCheck:
    steps = len(plan)
    shared = {level: median_cost(together[same]).ms / steps for level, same in uniform.items()}
    measured, switches = median_cost(together[plan]), plan.switches * max(0.0, table.switch.ms)
    moved = sum(shared[level] - table.levels[level].ms for level in plan)
    predicted = table.cost(plan)
    return PlanCheck(
        plan,
        predicted,
        measured,
        table.speedup(plan),
        _ratio(together[uniform[table.reference]], together[plan]),
        moved,
        switches,
        measured.ms - predicted - moved,
    )


def _ratio(over: Sequence[float], under: Sequence[float]) -> Cost:
    return median_cost([a / b for a, b in zip(over, under, strict=True)])


def _how(subject: Subject) -> dict[str, str | int | float]:
    ran = {"compiled": "yes"} if subject.compiled else {}
    if subject.weights == RANDOM:
        return {"weights": RANDOM, "resolution": subject.resolution, **ran}
    return {"call": call_words(subject.call), **ran}


def _name(subject: Subject, device: str) -> str:
    words = f"measured-{subject.model}-{device}-batch{subject.batch}"
    words += f"-{subject.resolution}" if subject.weights == RANDOM else ""
    words += "-compiled" if subject.compiled else ""
    return re.sub(r"[^a-z0-9.]+", "-", words.lower()).strip("-")


def _check(subject: Subject, repeats: int, plans: Sequence[PrecisionPlan]) -> None:
    levels = subject.levels
    check_own_names(subject.modules)
    if strange := next((name for name in subject.modules if name not in levels), None):
        raise UsageError(f"--level {strange}=... is not among --levels {','.join(levels)}")
    for level in levels:
        if level not in subject.modules and Level.parse(level).backend == SIMULATED:
            raise UsageError(
                f"{level} is simulated: its arithmetic is emulated, its time is no cost; "
                f"measure {NATIVE}{level}, or use a roofline"
            )
    if len(set(levels)) != len(levels) or len(levels) < 2:
        raise UsageError("--levels takes the reference and at least one other level, each once")
    if repeats < MIN_REPEATS:
        raise UsageError(f"--repeats {repeats}: an interval needs at least {MIN_REPEATS}")
    if subject.steps <= len(levels):
        raise UsageError(
            f"--steps {subject.steps}: {len(levels)} levels can't take turns in that few"
        )
    for plan in plans:
        if len(plan) != subject.steps:
            raise UsageError(f"--plan {plan} has {len(plan)} steps, --steps is {subject.steps}")
        for level in plan:
            if level not in levels:
                raise UsageError(f"--plan {plan}: {level} is not among --levels {','.join(levels)}")
