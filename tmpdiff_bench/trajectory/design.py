"""Which joint plans to run, so that additivity can be tested and not only observed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.experiment import Experiment
from tmpdiff_bench.plan import JointPlan, PrecisionPlan

COMPLEMENTS = 3  # one-high-step plans per level, for the design-free check
MIXED = 4  # plans that use several low levels
KINDS = ("first", "last", "middle", "alternating", "random")
_PER_STRATUM = 5  # plans per number of low steps: one of each kind, so that some share a number
_TRIES = 100

Mask = tuple[int, ...]  # the low steps, ascending


def designed(experiment: Experiment) -> tuple[JointPlan, ...]:
    """The joint plans of an experiment: its own, held out, as nothing is fitted to them, then those
    of a design, whose seed is the first noise seed.
    """
    own = tuple(JointPlan(plan, "given", held_out=True) for plan in experiment.plans)
    if not experiment.joint_plans:
        return own
    levels, steps = experiment.levels, experiment.steps
    design = joint_design(
        levels,
        steps,
        per_level=experiment.joint_plans,
        complements=min(COMPLEMENTS, steps),
        mixed=MIXED if len(levels) > 2 else 0,
        rng=experiment.seed,
    )
    return (*own, *(joint for joint in design if joint.plan not in experiment.plans))


def joint_design(
    levels: Sequence[str],
    steps: int,
    *,
    per_level: int,
    complements: int,
    mixed: int,
    rng: int | np.random.Generator = 0,
) -> tuple[JointPlan, ...]:
    """Choose the joint plans of an experiment; the same arguments give the same plans.

    `levels[0]` is the reference. Each low level gets `per_level` plans of that level and the
    reference: its uniform plan, and masks spread evenly over a few numbers of low steps (about
    five plans each), contiguous (first, last, middle), alternating and random in turn. Of these a
    third is held out, one of every three in order of the number of low steps. Random masks are
    uniform: to prefer those that share a long prefix with the reference would be cheaper, but
    would make early steps rare.

    `complements` more plans per level have one high step in an otherwise low run (evenly spread
    steps; those that are in the design already are not repeated). They serve the design-free check
    and are neither fitted nor scored. `mixed` plans use at least two low levels each and are all
    held out: predictors fitted to the plans of one level are to hold for them.

    No plan is the reference, a single plan or a repetition, so short runs get fewer plans than
    asked for: none for S = 1, only the uniform one for S = 2. Raises `UsageError` for fewer than
    two levels, repeated levels, S < 1 or negative counts.

    >>> for joint in joint_design(("fp32", "w4a4"), 4, per_level=3, complements=1, mixed=0):
    ...     print(joint.kind, "|", joint.plan, "|", joint.held_out)
    first | w4a4*2 fp32*2 | False
    last | fp32*2 w4a4*2 | False
    uniform | w4a4*4 | True
    complement | w4a4*2 fp32 w4a4 | False
    """
    _check(levels, steps, per_level, complements, mixed)
    generator = np.random.default_rng(rng)
    reference = levels[0]
    designed: list[JointPlan] = []
    for level in levels[1:]:
        masks = _masks(steps, per_level, generator)
        chosen = [(_plan(reference, level, mask, steps), kind) for mask, kind in masks]
        designed += _held_out(chosen, reference, generator)
        spread = [(2 * i + 1) * steps // (2 * complements) for i in range(complements)]
        for high in dict.fromkeys(spread):
            mask = tuple(step for step in range(steps) if step != high)
            if len(mask) > 1 and mask not in dict(masks):
                plan = _plan(reference, level, mask, steps)
                designed.append(JointPlan(plan, "complement", False))
    plans = _mixed(levels, steps, mixed, generator)
    return (*designed, *(JointPlan(plan, "mixed", True) for plan in plans))


def _masks(steps: int, per_level: int, rng: np.random.Generator) -> list[tuple[Mask, str]]:
    """Choose up to `per_level` masks of two or more low steps, by ascending number of them."""
    chosen: dict[Mask, str] = {}
    if steps > 1:
        chosen[tuple(range(steps))] = "uniform"
    counts = _strata(steps, round((per_level - 1) / _PER_STRATUM))
    for slot in range(per_level - 1 if counts else 0):
        turn, stratum = divmod(slot, len(counts))
        kind = KINDS[(turn + stratum) % len(KINDS)]
        # a mask that is taken is replaced by a random one of its stratum, or of any other number
        for count in (counts[stratum], *range(2, steps)):
            mask = _shaped(kind, count, steps)
            if mask is None or mask in chosen:
                kind, mask = "random", _random(count, steps, chosen, rng)
            if mask is not None:
                chosen[mask] = kind
                break
    return sorted(chosen.items(), key=lambda item: len(item[0]))


def _strata(steps: int, wanted: int) -> list[int]:
    """Choose numbers of low steps between two and S - 1, evenly spread."""
    number = min(max(wanted, 1), steps - 2)
    if number < 1:
        return []
    if number == steps - 2:
        return list(range(2, steps))
    margin = max(2.0, steps / (number + 1))
    middle = [steps / 2] if number == 1 else np.linspace(margin, steps - margin, number)
    return sorted({round(float(count)) for count in middle})


def _shaped(kind: str, count: int, steps: int) -> Mask | None:
    """Make the mask of a regular kind; None for "random"."""
    if kind == "alternating":
        return tuple((2 * i + 1) * steps // (2 * count) for i in range(count))
    starts = {"first": 0, "last": steps - count, "middle": (steps - count) // 2}
    return tuple(range(starts[kind], starts[kind] + count)) if kind in starts else None


def _random(
    count: int, steps: int, taken: dict[Mask, str], rng: np.random.Generator
) -> Mask | None:
    """Draw a mask that is not taken; None where there is none."""
    for _ in range(_TRIES):
        mask = tuple(sorted(rng.choice(steps, count, replace=False).tolist()))
        if mask not in taken:
            return mask
    return next((mask for mask in combinations(range(steps), count) if mask not in taken), None)


def _mixed(
    levels: Sequence[str], steps: int, wanted: int, rng: np.random.Generator
) -> list[PrecisionPlan]:
    """Draw plans of at least two low levels, their numbers of low steps evenly spread."""
    plans: dict[PrecisionPlan, None] = {}
    if wanted < 1 or steps < 2 or len(levels) < 3:
        return []
    for target in np.linspace(2, steps, wanted + 2)[1:-1]:
        for _ in range(_TRIES):
            low = rng.choice(steps, round(float(target)), replace=False)
            plan = PrecisionPlan.uniform(levels[0], steps)
            for step in low.tolist():
                plan = plan.replace(step, levels[1 + int(rng.integers(len(levels) - 1))])
            if len(set(plan.levels) - {levels[0]}) > 1 and plan not in plans:
                plans[plan] = None
                break
    return list(plans)


def _held_out(
    chosen: list[tuple[PrecisionPlan, str]], reference: str, rng: np.random.Generator
) -> list[JointPlan]:
    """Hold out one of every three plans in order of their number of low steps."""
    ordered = sorted(chosen, key=lambda item: -item[0].count(reference))
    held = {
        start + int(rng.integers(min(3, len(ordered) - start)))
        for start in range(0, len(ordered) - 1, 3)
    }
    return [JointPlan(plan, kind, i in held) for i, (plan, kind) in enumerate(ordered)]


def _plan(reference: str, level: str, mask: Mask, steps: int) -> PrecisionPlan:
    return PrecisionPlan(tuple(level if step in mask else reference for step in range(steps)))


def _check(levels: Sequence[str], steps: int, per_level: int, complements: int, mixed: int) -> None:
    if len(levels) < 2 or len(set(levels)) < len(levels):
        raise UsageError(
            f"a design needs a reference and at least one other level, each once; got {levels!r}"
        )
    if steps < 1 or per_level < 1:
        raise UsageError(
            f"a design needs at least 1 step and 1 plan per level, got {steps} and {per_level}"
        )
    if min(complements, mixed) < 0:
        raise UsageError(f"numbers of plans can't be negative: {min(complements, mixed)}")
