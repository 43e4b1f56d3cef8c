"""All that one recording says about cost against error."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import numpy as np

from tmpdiff_bench.allocators.base import AllocationProblem, Floats
from tmpdiff_bench.allocators.convex import pairs_of_steps
from tmpdiff_bench.allocators.options import whole
from tmpdiff_bench.allocators.quadratic import Weights, least_quadratic
from tmpdiff_bench.plan import PrecisionPlan

_MAX_PLANS = 2**24  # gone through for each budget that the search does not end for
_ROUNDS = 4  # a budget goes on from the reformulation of the one before


@dataclass(frozen=True)
class FrontPoint:
    """A plan, its cost and speedup, and its predicted error; no plan that costs as little has a
    predicted error below `lower_bound`, which equals it where the plan is proven best.
    """

    plan: PrecisionPlan
    cost: float
    speedup: float
    predicted_error: float
    lower_bound: float


def gram_front(
    problem: AllocationProblem, *, points: int = 64, max_nodes: int = 1_000
) -> tuple[FrontPoint, ...]:
    """The Pareto front of cost against the error that `gram` predicts, cheapest plan first.

    One recording gives all of it; nothing is measured, and the problem's budget plays no part.
    Where plans have at most `points` different costs the front is whole; otherwise it is sampled
    at `points` budgets, evenly from the cheapest plan to the reference. Every budget is searched
    up to `max_nodes`, and up to 2^24 plans then gone through; `lower_bound` says where that did not
    suffice for a proof.

    Raises:
        UsageError: the problem has no `gram`, or `points` is below 2.
    """
    form = problem.need_gram("gram_front")
    points, max_nodes = whole("points", points, 2), whole("max_nodes", max_nodes, 0)
    costs = problem.step_costs
    first, _ = pairs_of_steps(problem.steps, len(form))
    weights = Weights.start(len(form), len(first))
    found: list[FrontPoint] = []
    starts: list[tuple[int, ...]] = []
    for budget in _budgets(costs, points):
        solution = least_quadratic(
            form,
            costs,
            budget,
            max_nodes=max_nodes,
            max_plans=_MAX_PLANS,
            rounds=_ROUNDS,
            weights=weights,
            starts=starts[-1:],
        )
        starts.append(solution.choice)
        cost = problem.cost(solution.choice)
        point = FrontPoint(
            problem.plan(solution.choice),
            cost,
            problem.speedup(cost),
            math.sqrt(max(solution.value, 0.0)),
            math.sqrt(max(solution.bound, 0.0)),
        )
        # a larger budget that buys nothing, or a worse plan found later, is no part of the front
        if found and point.predicted_error >= found[-1].predicted_error:
            continue
        while found and cost <= found[-1].cost:
            found.pop()
        found.append(point)
    return tuple(found)


def _budgets(costs: Floats, points: int) -> Floats:
    """All total costs up to the reference's where they are few, else evenly spaced ones."""
    least, most = math.fsum(costs.min(axis=1)), math.fsum(costs[:, 0])
    scale = max(most, sys.float_info.min)
    totals = np.zeros(1)
    for row in costs:
        sums = np.add.outer(totals, np.unique(row)).ravel() / scale
        totals = np.unique(np.round(sums, 12)) * scale
        if len(totals) > 100 * points:
            break
    else:
        totals = totals[totals <= most * (1 + 1e-9)]
        if len(totals) <= points:
            return totals
    return np.linspace(least, most, points)
