"""`knapsack` whatever the range of costs and errors, and where its lists are cut short."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from tests.allocators.tasks import Floats, additive
from tmpdiff_bench.allocators import AllocationProblem, knapsack
from tmpdiff_bench.allocators.solvers.multiple_choice import cheapest_choice

_EDGE = 1e-13  # relative: plans as near as this to the budget may fit or not, by rounding


def least_sums(problem: AllocationProblem, singles: Floats) -> tuple[float, float]:
    """The least sum of single errors over all plans, budget taken a shade wide and a shade tight.

    The optimum lies between the two, however the sums of costs are rounded.
    """
    steps, levels = singles.shape
    plans = [
        (
            math.fsum(problem.step_costs[s, level] for s, level in enumerate(choice)),
            math.fsum(singles[s, level] for s, level in enumerate(choice)),
        )
        for choice in itertools.product(range(levels), repeat=steps)
    ]
    limit = problem.budget * (1 + 1e-9)
    wide, tight = (
        min((error for cost, error in plans if cost <= limit * edge), default=math.inf)
        for edge in (1 + _EDGE, 1 - _EDGE)
    )
    return wide, tight


@st.composite
def wide_tables(draw: st.DrawFn) -> tuple[Floats, float, Floats]:
    """Costs (S, L) and single errors (S, L) from 1e-7 to 1e7, a budget that is some plan's cost."""
    levels = draw(st.integers(2, 3))
    steps = draw(st.integers(1, 8 if levels == 2 else 5))
    power = st.floats(-7, 7)
    shape = (steps, levels)
    costs, singles = (
        10.0 ** np.array(draw(st.lists(power, min_size=steps * levels, max_size=steps * levels)))
        for _ in range(2)
    )
    costs, singles = costs.reshape(shape), singles.reshape(shape)
    singles[:, 0] = 0
    chosen = draw(st.lists(st.integers(0, levels - 1), min_size=steps, max_size=steps))
    return costs, math.fsum(costs[s, level] for s, level in enumerate(chosen)), singles


@given(wide_tables())
@settings(max_examples=150, deadline=None)
def test_the_optimum_is_found_whatever_the_range(table: tuple[Floats, float, Floats]) -> None:
    problem, singles = additive(*table), table[2]
    wide, tight = least_sums(problem, singles)
    found = knapsack(problem)
    assert found.predicted_error is not None
    assert wide * (1 - 1e-12) <= found.predicted_error <= tight * (1 + 1e-12)
    assert found.lower_bound is not None
    assert 0 <= found.lower_bound <= tight * (1 + 1e-12)
    assert found.gap == 0


@given(wide_tables(), st.integers(0, 20))
@settings(max_examples=100, deadline=None)
def test_lists_that_are_cut_short_are_bounded(
    table: tuple[Floats, float, Floats], states: int
) -> None:
    problem, singles = additive(*table), table[2]
    wide, tight = least_sums(problem, singles)
    choice, total, bound = cheapest_choice(problem, singles, max_states=states)
    assert problem.fits(problem.cost(choice))
    assert total == math.fsum(singles[s, level] for s, level in enumerate(choice))
    assert wide * (1 - 1e-12) <= total
    assert 0 <= bound <= min(tight * (1 + 1e-12), total)


def hard(steps: int, seed: int) -> tuple[AllocationProblem, Floats]:
    """What a step saves is nearly what it errs, and all steps differ: bounds tell little apart."""
    rng = np.random.default_rng(seed)
    costs = np.sort(rng.uniform(0.1, 1.0, (steps, 3)), axis=1)[:, ::-1]
    singles = costs[:, :1] - costs + 0.1 * (np.arange(3) > 0)
    budget = float(costs[:, 2].sum() + 0.5 * (costs[:, 0] - costs[:, 2]).sum())
    return additive(costs, budget, singles), singles


def milp_optimum(problem: AllocationProblem, singles: Floats) -> float:
    """The least sum as HiGHS finds it; its tolerance of costs is 1e-6."""
    steps, levels = singles.shape
    one_each = np.kron(np.eye(steps), np.ones(levels))
    result = milp(
        singles.ravel(),
        integrality=np.ones(singles.size),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(problem.step_costs.reshape(1, -1), -np.inf, problem.budget),
        ],
        options={"mip_rel_gap": 0.0},
    )
    return float(result.fun)


@pytest.mark.parametrize("seed", range(3))
def test_an_integer_program_finds_the_same(seed: int) -> None:
    problem, singles = hard(14, seed)
    _, total, bound = cheapest_choice(problem, singles)
    assert bound == total == pytest.approx(milp_optimum(problem, singles), abs=1e-5)


@pytest.mark.parametrize("states", [1_000, 10_000])
def test_short_lists_lose_little(states: int) -> None:
    problem, singles = hard(30, 0)
    _, best, proven = cheapest_choice(problem, singles)
    assert proven == best
    _, total, bound = cheapest_choice(problem, singles, max_states=states)
    assert bound <= best <= total <= 1.01 * best
    assert bound >= 0.95 * best


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    """HiGHS wrote lines of its own to the file descriptor here, past all its options."""
    knapsack(hard(200, 0)[0])
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
