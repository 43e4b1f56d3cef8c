"""Plans as texts that other programs read: comma lists, and the step policy of inference engines.

The policy (the first n and the last m steps high, the rest low) has the schema of
`quantization_config.runtime.diffusion_step_policy`, version 1, as diffusers 0.42 parses it
(`diffusers.pipelines.cosmos.mixed_precision`). There `a16` is the high mode and `native` the low
one: the arithmetic that the checkpoint was quantized for. A policy names no levels and no number of
steps; a plan has both, so reading one needs them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, get_args

from tmpdiff_bench.allocators import AllocationProblem
from tmpdiff_bench.errors import UsageError, unknown
from tmpdiff_bench.files import parse_json
from tmpdiff_bench.plan import PrecisionPlan

Mode = Literal["a16", "native"]
HIGH, LOW = get_args(Mode)
_PATH = ("quantization_config", "runtime", "diffusion_step_policy")
_FIXED: Mapping[str, object] = {
    "schema_version": 1,
    "type": "first_last_n",
    "index_space": "denoising_loop_iteration",
    "scope": ["transformer"],
    "default_mode": LOW,
}
_FIELDS = {*_FIXED, "first_steps", "last_steps", "overlap", "reasoner"}


@dataclass(frozen=True)
class StepPolicy:
    """The first `first` and the last `last` steps run high, all others low.

    `overlap` is the mode of steps that are both; SGLang and TensorRT-LLM take `a16` only, which is
    what plans are written with. `reasoner` is the mode of the text path that
    Cosmos models run besides; plans do not speak of it. Engines keep a run of a single step low,
    whatever the counts.

    >>> StepPolicy(1, 2).plan(5, high="fp32", low="w4a4").levels
    ('fp32', 'w4a4', 'w4a4', 'fp32', 'fp32')
    """

    first: int
    last: int
    overlap: Mode = "a16"
    reasoner: Mode = "a16"

    def __post_init__(self) -> None:
        for name in ("first", "last"):
            _check_count(f"{name}_steps", getattr(self, name))
        for name in ("overlap", "reasoner"):
            _check_mode(name, getattr(self, name))

    def plan(self, steps: int, *, high: str, low: str) -> PrecisionPlan:
        """The plan of a run of `steps` steps. Raises `UsageError` where the levels are the same."""
        if high == low:
            raise UsageError(f"a policy tells a high level from a low one: both are {high!r}")
        plan = PrecisionPlan.uniform(low, steps)
        for step in range(steps):
            in_first, in_last = step < self.first, step >= steps - self.last
            both_low = in_first and in_last and self.overlap == LOW
            if steps > 1 and (in_first or in_last) and not both_low:
                plan = plan.replace(step, high)
        return plan

    @classmethod
    def of(cls, plan: PrecisionPlan, *, high: str) -> StepPolicy:
        """The policy whose run of as many steps is the plan.

        Raises:
            UsageError: no policy says this; the message names the reason.
        """
        low = sorted(set(plan) - {high})
        if len(low) > 1:
            raise UsageError(f"{_no_policy(plan)}: it has {len(low)} levels besides {high}")
        runs = [(level, len(list(run))) for level, run in groupby(plan)]
        first = runs[0][1] if runs[0][0] == high else 0
        last = runs[-1][1] if runs[-1][0] == high and len(runs) > 1 else 0
        policy = cls(first, last)
        if policy.plan(len(plan), high=high, low=(low or ["low"])[0]) == plan:
            return policy
        if len(plan) == 1:
            raise UsageError(f"{_no_policy(plan)}: engines keep a single step at the low level")
        raise UsageError(f"{_no_policy(plan)}: {low[0]} is not one run of steps")

    def to_json(self) -> str:
        """JSON text as it stands in a transformer's `config.json`, within its parents."""
        policy: dict[str, object] = {
            **_FIXED,
            "first_steps": {"count": self.first, "mode": HIGH},
            "last_steps": {"count": self.last, "mode": HIGH},
            "overlap": self.overlap,
            "reasoner": self.reasoner,
        }
        content: dict[str, object] = policy
        for name in reversed(_PATH):
            content = {name: content}
        return json.dumps(content, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> StepPolicy:
        """Read a policy, alone or within any of its parents, such as a whole `config.json`.

        Parents may hold anything else; the policy may not. A window of mode `native` is none.

        Raises:
            UsageError: a field is missing, unknown, given twice, of another type or value.
        """
        policy = _descend(parse_json(text, "a step policy's JSON"))
        if set(policy) != _FIELDS:
            missing, strange = sorted(_FIELDS - set(policy)), sorted(set(policy) - _FIELDS)
            raise UsageError(f"a step policy lacks {missing} and has the unknown fields {strange}")
        for name, wanted in _FIXED.items():
            # True == 1 and 1.0 == 1 in Python, but no engine should have to guess what was meant
            if type(policy[name]) is not type(wanted) or policy[name] != wanted:
                raise UsageError(
                    f"a step policy's {name!r} is {policy[name]!r}, only {wanted!r} is known"
                )
        return cls(
            _window(policy, "first_steps"),
            _window(policy, "last_steps"),
            policy["overlap"],
            policy["reasoner"],
        )


def _no_policy(plan: PrecisionPlan) -> str:
    return f"no first-last policy says {plan}"


def _descend(content: Any) -> dict[str, Any]:
    """The policy in its outermost parent that is there."""
    for name in _PATH:
        if not isinstance(content, dict):
            break
        if name in content:
            content = content[name]
    if not isinstance(content, dict):
        raise UsageError(f"a step policy is an object, got {content!r}")
    if not _FIELDS & set(content):
        raise UsageError(f"there is no {'.'.join(_PATH)} in it")
    return content


def _window(policy: dict[str, Any], name: str) -> int:
    window = policy[name]
    if not isinstance(window, dict) or set(window) != {"count", "mode"}:
        raise UsageError(f"a step policy's {name!r} is an object of count and mode, got {window!r}")
    _check_mode(f"{name}.mode", window["mode"])
    _check_count(name, window["count"])
    count: int = window["count"]
    return count if window["mode"] == HIGH else 0


def _check_count(name: str, count: object) -> None:
    if type(count) is not int or count < 0:
        raise UsageError(f"a step policy's {name!r} counts {count!r}: 0 or more is needed")


def _check_mode(name: str, mode: object) -> None:
    if mode not in get_args(Mode):
        raise UsageError(f"a step policy's {name!r} is {mode!r}: {HIGH!r} or {LOW!r} is needed")


FORMATS = ("diffusion-step-policy", "comma", "json")


def export(plan: PrecisionPlan, format: str, *, high: str = "fp32") -> str:
    """A plan in one of `FORMATS`, with a newline at its end.

    `high` is the level that a policy's `a16` stands for. `comma` is one level a step, as xDiT
    takes steps; `json` is the library's own.

    Raises:
        UsageError: an unknown format, a plan that a policy cannot say, a comma in a level's name.
    """
    if format == "json":
        return plan.to_json() + "\n"
    if format == "comma":
        if strange := next((level for level in plan if "," in level), None):
            raise UsageError(f"level {strange!r} has a comma: it cannot stand in a comma list")
        return ",".join(plan) + "\n"
    if format == "diffusion-step-policy":
        return StepPolicy.of(plan, high=high).to_json()
    raise unknown("format", format, FORMATS)


def from_comma(text: str) -> PrecisionPlan:
    """Read a comma list. Raises `UsageError` for an empty or damaged one."""
    return PrecisionPlan(tuple(level.strip() for level in text.split(",")))


@dataclass(frozen=True)
class Projection:
    """A first-last plan in place of another, and what the exchange costs.

    Errors are what the problem says of the plans; speedups are against its reference plan.
    """

    plan: PrecisionPlan
    error: float
    speedup: float
    original: PrecisionPlan
    original_error: float
    original_speedup: float
    sources: tuple[str, str]

    def __str__(self) -> str:
        """Two lines: both plans, then the loss."""
        ratio = f"{self.error / self.original_error:.3g}x" if self.original_error else "from 0"
        source, before = self.sources
        return (
            f"{self.original} -> {self.plan}\n"
            f"error {self.original_error:.4g} ({before}) -> {self.error:.4g} ({source}), {ratio}; "
            f"speedup {self.original_speedup:.4g} -> {self.speedup:.4g}"
        )


def project(plan: PrecisionPlan, problem: AllocationProblem) -> Projection:
    """The first-last plan of least error that costs no more than `plan`.

    Its high level is the problem's reference, its low level any other; the problem's own budget
    plays no part. Ties go to the cheaper, then to the plan with fewer first steps.

    Raises:
        UsageError: the plan does not fit the problem, or no first-last plan is as cheap.
    """
    budget = problem.cost(plan) * (1 + 1e-9)
    found = [
        (problem.error(candidate), problem.cost(candidate), i, candidate)
        for i, candidate in enumerate(candidates(problem))
        if problem.cost(candidate) <= budget
    ]
    if not found:
        raise UsageError(f"no first-last plan costs as little as {plan}")
    error, cost, _, best = min(found)
    source = getattr(problem.error, "source", lambda plan: "measured")
    return Projection(
        plan=best,
        error=error,
        speedup=problem.speedup(cost),
        original=plan,
        original_error=problem.error(plan),
        original_speedup=problem.speedup(problem.cost(plan)),
        sources=(source(best), source(plan)),
    )


def candidates(problem: AllocationProblem) -> list[PrecisionPlan]:
    """All first-last plans of a problem; a plan is among them once."""
    steps, high = problem.steps, problem.levels[0]
    found = {PrecisionPlan.uniform(high, steps): None} if steps > 1 else {}
    for low in problem.levels[1:]:
        for first in range(steps):
            for last in range(steps - first):
                middle = steps - first - last
                found[PrecisionPlan((high,) * first + (low,) * middle + (high,) * last)] = None
    return list(found)
