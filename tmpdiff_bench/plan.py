"""Precision plans: which level each denoising step runs at."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate, groupby, pairwise
from typing import Any

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.files import parse_json

MAX_STEPS = 10_000  # turns a typing error such as `w4a4*10000000000` into a message, not a crash
_SCHEMA_VERSION = 1
_LEVEL = re.compile(r"[^\s*]+")
_RUN = re.compile(r"([^*]+)(?:\*([1-9][0-9]{0,9}))?")
_SAME = 0.01  # noise levels that differ by less are those that a plan was made for


@dataclass(frozen=True, slots=True)
class PlanSchedule:
    """The noise levels that a plan was made for: the scheduler's class, and an entry a step of its
    `sigmas`, of its `timesteps`, or of both. Anything else is a `UsageError`.

    >>> made_for = PlanSchedule("Euler", (1.0, 0.75))
    >>> made_for.difference(PlanSchedule("Heun", (1.0, 0.752)))  # nothing to speak of
    >>> made_for.difference(PlanSchedule("Heun", (1.0, 0.5)))
    'step 1 has sigma 0.75 in the plan (Euler), 0.5 in the run (Heun)'
    """

    scheduler: str
    sigmas: tuple[float, ...] | None = None
    timesteps: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.scheduler, str) or not self.scheduler:
            raise UsageError(f"a schedule names its scheduler's class, got {self.scheduler!r}")
        if not self.sigmas and not self.timesteps:
            raise UsageError("a schedule has sigmas or timesteps, got neither")
        for name in ("sigmas", "timesteps"):
            noise = getattr(self, name)
            numbers = isinstance(noise, tuple) and all(isinstance(x, int | float) for x in noise)
            if noise is not None and not (numbers and all(map(math.isfinite, noise))):
                raise UsageError(f"a schedule's {name} are finite numbers, got {noise!r}")

    def difference(self, run: PlanSchedule) -> str | None:
        """Where the noise of a run differs most from this, if it does by more than 1 %: of the
        sigma, or of the largest timestep where one of them has no sigmas.
        """
        if self.sigmas and run.sigmas:
            unit, mine, theirs, whole = "sigma", self.sigmas, run.sigmas, self.sigmas
        elif self.timesteps and run.timesteps:
            unit, mine, theirs = "timestep", self.timesteps, run.timesteps
            whole = (max(map(abs, mine)),) * len(mine)
        else:
            return (
                f"the noise of the plan's {self.scheduler} and of the run's {run.scheduler} can't "
                "be compared: one has sigmas alone, one timesteps"
            )
        apart = [abs(a - b) / (abs(w) or 1) for a, b, w in zip(mine, theirs, whole, strict=False)]
        step = apart.index(max(apart))
        if apart[step] <= _SAME:
            return None
        return (
            f"step {step} has {unit} {mine[step]:.4g} in the plan ({self.scheduler}), "
            f"{theirs[step]:.4g} in the run ({run.scheduler})"
        )


@dataclass(frozen=True, slots=True)
class PrecisionPlan:
    """One level per step, in denoising-loop order: step 0 is the noisiest.

    `levels` is a tuple of S level names, each non-empty and without whitespace or `*`. Plans are
    values: equal levels make equal plans, hashes and digests, whatever the `schedule` that they
    were made for. Anything else is a `UsageError`.

    >>> plan = PrecisionPlan.uniform("w4a4", 5).replace(0, "bf16")
    >>> str(plan), plan[0], len(plan), plan.count("w4a4")
    ('bf16 w4a4*4', 'bf16', 5, 4)
    """

    levels: tuple[str, ...]
    schedule: PlanSchedule | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.levels, tuple):
            raise UsageError(
                f"a plan takes a tuple of level names, got {self.levels!r}; "
                "text is read by PrecisionPlan.parse"
            )
        _check_steps(len(self.levels))
        # each name once: plans of a thousand steps are made by the thousand
        text = all(type(level) is str for level in self.levels)
        for level in dict.fromkeys(self.levels) if text else self.levels:
            if not isinstance(level, str) or _LEVEL.fullmatch(level) is None:
                raise UsageError(
                    f"bad level name {level!r}: names are non-empty, without whitespace or '*'"
                )
        if self.schedule is not None:
            for noise in (self.schedule.sigmas, self.schedule.timesteps):
                if noise is not None and len(noise) != len(self):
                    raise UsageError(
                        f"the plan has {len(self)} steps, its schedule {len(noise)} noise levels"
                    )

    def __len__(self) -> int:
        return len(self.levels)

    def __getitem__(self, step: int) -> str:
        return self.levels[step]

    def __iter__(self) -> Iterator[str]:
        return iter(self.levels)

    def __str__(self) -> str:
        """The canonical run-length text; a run of one step is written without its count."""
        runs = ((level, len(list(run))) for level, run in groupby(self.levels))
        return " ".join(f"{level}*{count}" if count > 1 else level for level, count in runs)

    @property
    def switches(self) -> int:
        """How many steps run at another level than the step before."""
        return sum(a != b for a, b in pairwise(self.levels))

    def count(self, level: str) -> int:
        """How many steps run at `level`."""
        return self.levels.count(level)

    def replace(self, step: int, level: str) -> PrecisionPlan:
        """The same plan with `step` (0..S-1) at `level`. Raises `UsageError` for another step."""
        if not 0 <= step < len(self):
            raise UsageError(f"step {step} is outside 0..{len(self) - 1}")
        return PrecisionPlan((*self.levels[:step], level, *self.levels[step + 1 :]), self.schedule)

    @classmethod
    def uniform(cls, level: str, steps: int) -> PrecisionPlan:
        """Every one of `steps` steps at `level`."""
        _check_steps(steps)
        return cls((level,) * steps)

    @classmethod
    def single(cls, reference: str, level: str, step: int, steps: int) -> PrecisionPlan:
        """`reference` everywhere except `level` at `step`.

        Raises `UsageError` where `level` is the reference itself or `step` is not in 0..steps-1.
        """
        if level == reference:
            raise UsageError(f"a single plan differs from its reference {reference!r} at one step")
        return cls.uniform(reference, steps).replace(step, level)

    @classmethod
    def singles(cls, levels: Sequence[str], steps: int) -> list[PrecisionPlan]:
        """All single plans, by level, then step; `levels[0]` is the reference."""
        places = [(level, step) for level in levels[1:] for step in range(steps)]
        return [cls.single(levels[0], level, step, steps) for level, step in places]

    def cells(self, levels: Sequence[str]) -> list[int]:
        """Where in `singles` the single plans stand that this plan is made of.

        >>> PrecisionPlan(("a", "c", "b")).cells(("a", "b", "c"))
        [4, 2]
        """
        low = [(step, levels.index(level)) for step, level in enumerate(self.levels)]
        return [(index - 1) * len(self) + step for step, index in low if index]

    def resampled(self, steps: int) -> PrecisionPlan:
        """The plan for another number of steps: each gets the level that holds at its middle.

        >>> str(PrecisionPlan.parse("fp32*2 w4a4*6 fp32*2").resampled(5))
        'fp32 w4a4*3 fp32'
        """
        if steps == len(self):
            return self
        places = ((2 * step + 1) * len(self) // (2 * steps) for step in range(steps))
        return PrecisionPlan(tuple(self[place] for place in places))

    @classmethod
    def parse(cls, text: str) -> PrecisionPlan:
        """Read run-length text: `LEVEL` or `LEVEL*COUNT`, separated by whitespace.

        Raises `UsageError` naming the run that cannot be read.

        >>> PrecisionPlan.parse("bf16*1 w4a4*2").levels
        ('bf16', 'w4a4', 'w4a4')
        """
        levels: tuple[str, ...] = ()
        for run in text.split():
            match = _RUN.fullmatch(run)
            if match is None:
                raise UsageError(
                    f"bad run {run!r} in plan {text!r}: write LEVEL or LEVEL*COUNT, "
                    "as in 'bf16*3 w4a4*14 bf16*3'"
                )
            count = int(match[2] or 1)
            _check_steps(len(levels) + count)
            levels += (match[1],) * count
        return cls(levels)

    def to_json(self) -> str:
        """Canonical JSON text: the same plan always gives the same bytes.

        >>> PrecisionPlan(("bf16", "w4a4")).to_json()
        '{"levels":["bf16","w4a4"],"schema_version":1}'
        """
        content: dict[str, Any] = {"levels": self.levels, "schema_version": _SCHEMA_VERSION}
        if self.schedule is not None:
            content["schedule"] = asdict(self.schedule)
        return json.dumps(content, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> PrecisionPlan:
        """Read what `to_json` wrote.

        Raises `UsageError` for anything else: malformed JSON, another schema version, a field that
        is missing, unknown or written twice.
        """
        content = parse_json(text, "a plan's JSON")
        fields = set(content) if isinstance(content, dict) else None
        if fields is None or fields - {"schedule"} != {"levels", "schema_version"}:
            found = type(content).__name__ if fields is None else f"the fields {sorted(fields)}"
            raise UsageError(
                "a plan's JSON is an object of 'levels', 'schema_version' and perhaps 'schedule', "
                f"got {found}"
            )
        version, levels = content["schema_version"], content["levels"]
        if type(version) is not int or version != _SCHEMA_VERSION:
            raise UsageError(f"plan schema version {version!r} is not {_SCHEMA_VERSION}")
        if not isinstance(levels, list):
            raise UsageError(f"a plan's 'levels' is a list of level names, got {levels!r}")
        schedule = _read_schedule(content["schedule"]) if "schedule" in content else None
        return cls(tuple(levels), schedule)

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON without a schedule, as 64 hexadecimal digits."""
        alone = PrecisionPlan(self.levels)
        return hashlib.sha256(alone.to_json().encode()).hexdigest()


@dataclass(frozen=True)
class JointPlan:
    """A plan with several low steps, its label in a design, and whether predictors are scored on it
    (else: fitted).
    """

    plan: PrecisionPlan
    kind: str
    held_out: bool


def check_lengths(plans: Sequence[PrecisionPlan]) -> int:
    """The number of steps of all plans. Raises `UsageError` for none, or unequal ones."""
    if not plans:
        raise UsageError("no plans to evaluate")
    steps = len(plans[0])
    if odd := next((p for p in plans if len(p) != steps), None):
        raise UsageError(f"plan {odd} has {len(odd)} steps, others have {steps}")
    return steps


def nodes_per_step(plans: Sequence[PrecisionPlan]) -> list[int]:
    """Distinct prefixes that end with each step: network steps a sample, step by step, where plans
    that agree on their first k steps share them.

    All S (L-1) single plans and the reference of L levels have S + (L-1) S (S+1) / 2 in all, where
    one loop per plan takes S (1 + S (L-1)); all L^S plans have (L^(S+1) - L) / (L - 1).

    Raises `UsageError` for no plans, or unequal lengths.
    """
    counts = [0] * check_lengths(plans)
    for step in _first_differences(plan.levels for plan in plans):
        counts[step] += 1  # this plan's own prefixes begin here, and end with every later step
    return list(accumulate(counts))


def _first_differences(rows: Iterable[tuple[str, ...]]) -> Iterator[int]:
    """Where each distinct row first differs from the one before it in sorted order."""
    before: tuple[str, ...] = ()
    for row in sorted(set(rows)):
        yield next((i for i, (a, b) in enumerate(zip(before, row, strict=False)) if a != b), 0)
        before = row


def _read_schedule(content: Any) -> PlanSchedule:
    names = {"scheduler", "sigmas", "timesteps"}
    if not isinstance(content, dict) or content.keys() != names:
        raise UsageError(f"a plan's 'schedule' is an object of {sorted(names)}, got {content!r}")
    noise = (content["sigmas"], content["timesteps"])
    if any(entries is not None and not isinstance(entries, list) for entries in noise):
        raise UsageError(f"a schedule's sigmas and timesteps are lists or null, got {content!r}")
    sigmas, timesteps = (None if entries is None else tuple(entries) for entries in noise)
    return PlanSchedule(content["scheduler"], sigmas, timesteps)


def _check_steps(steps: int) -> None:
    if not 1 <= steps <= MAX_STEPS:
        raise UsageError(f"a plan has 1 to {MAX_STEPS} steps, got {steps}")
