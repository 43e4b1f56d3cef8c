"""The best plan that a first-last policy can say, for a plan that none can."""

from __future__ import annotations

from dataclasses import dataclass

from tmpdiff_bench.allocators import AllocationProblem
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.plan import PrecisionPlan


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
