"""Plans as texts that other programs read."""

from __future__ import annotations

from tmpdiff_bench.deploy.policy import StepPolicy
from tmpdiff_bench.errors import UsageError, unknown
from tmpdiff_bench.plan import PrecisionPlan

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
