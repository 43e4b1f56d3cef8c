"""`gram` on forms of low rank, where many plans have a prediction near zero."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest

from tmpdiff_bench.allocators import AllocationProblem, bisection, gram
from tmpdiff_bench.plan import PrecisionPlan

STEPS = 13


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(12))
def test_the_optimum_is_that_of_all_plans(rank: int, seed: int) -> None:
    """Every plan is tried: branches must not be cut by bounds that belong to their parents."""
    rng = np.random.default_rng([rank, seed])
    factors = rng.normal(size=(STEPS, rank)) * rng.lognormal(0, 0.5, (STEPS, 1))
    form = factors @ factors.T
    costs = np.column_stack([np.ones(STEPS), rng.uniform(0.2, 0.6, STEPS)])
    budget = 0.75 * STEPS
    choices = np.array(list(itertools.product((0, 1), repeat=STEPS)))
    total = np.where(choices == 1, costs[:, 1], costs[:, 0]).sum(axis=1)
    values = np.einsum("ps,st,pt->p", choices, form, choices)
    best = math.sqrt(max(values[total <= budget].min(), 0.0))
    problem = AllocationProblem(("bf16", "w4a4"), costs, budget, lambda plan: 0.0, gram=form)
    found = gram(problem)
    assert found.predicted_error == pytest.approx(best, abs=1e-6)
    assert found.lower_bound is not None
    assert found.lower_bound <= best + 1e-6


@dataclass(frozen=True)
class FrozenError(Exception):
    """An exception that takes no attributes."""

    reason: str


def test_an_exception_that_takes_no_attributes_carries_what_was_paid() -> None:
    paid: list[PrecisionPlan] = []

    def oracle(plan: PrecisionPlan) -> float:
        if len(paid) == 3:
            raise FrozenError("out of memory")
        paid.append(plan)
        return float(sum(level == "w4a4" for level in plan))

    costs = np.tile([1.0, 0.25], (8, 1))
    with pytest.raises(FrozenError) as raised:
        bisection(AllocationProblem(("bf16", "w4a4"), costs, 4.0, oracle))
    partial = vars(raised.value)["partial"]
    assert [measurement.plan for measurement in partial] == paid
