"""The quadratic prediction: its optimum within a budget, and all of its Pareto front."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import numpy as np

from tmpdiff_bench.allocators.base import Allocation, AllocationProblem, Floats
from tmpdiff_bench.allocators.options import whole
from tmpdiff_bench.allocators.oracle import Oracle, cited, declares
from tmpdiff_bench.allocators.solvers.halves import MAX_PLANS
from tmpdiff_bench.allocators.solvers.quadratic import Weights, least_quadratic
from tmpdiff_bench.plan import PrecisionPlan

MAX_NODES = 4_000
_NODES_BEFORE_ALL = 1_000  # where going through all plans is no matter of hours


@declares(lambda steps, levels: max(1, steps * (levels - 1) + 1), needs=("gram",), predicts="gram")
def gram(problem: AllocationProblem, *, max_nodes: int | None = None) -> Allocation:
    """Minimise s'Gs under the budget: the error predicted if deviations superpose (H1m).

    G holds the mean inner products of terminal deviations, s marks the plan's cells, and the
    predicted error is the root of s'Gs. Branch and bound over a convex reformulation (Billionnet,
    Elloumi and Plateau 2009) whose bound is nearly that of a semidefinite program; proven optimal
    where the search ends before `max_nodes` (default: 1,000 up to 2^30 plans, else 4,000: seconds
    at S = 50 and L = 3). If it does not, as where many plans are nearly equal, then up to 2^30
    plans, so two levels at 30 steps, each is tried, which takes seconds; above that `lower_bound`
    says how good the plan is at least (`gap`). Bounds hold to 1e-9 of s'Gs.

    Needs the problem's `gram`, hence S(L-1) single plans, and measures the plan it chose:
    S(L-1) + 1 evaluations. The prediction is a root mean square over samples, which is somewhat
    above the mean of their roots. If a single plan within the budget measured less than the plan
    chosen, that is returned: deviations did not superpose.

    Raises:
        UsageError: the problem has no `gram`.
    """
    few = len(problem.levels) ** problem.steps <= MAX_PLANS
    default = _NODES_BEFORE_ALL if few else MAX_NODES
    limit = default if max_nodes is None else whole("max_nodes", max_nodes, 0)
    with Oracle(problem, "gram", cited("billionnet2009improving")) as oracle:
        form = problem.need_gram("gram")
        if problem.fits(problem.reference_cost):
            return oracle.allocation((0,) * problem.steps, predicted_error=0.0, lower_bound=0.0)
        found = least_quadratic(form, problem.step_costs, problem.budget, max_nodes=limit)
        oracle.gram()  # what was used goes into the account, and may be better than what is chosen
        oracle(found.choice)
        choice = problem.choice(oracle.best(first=found.choice))
        square = found.value if choice == found.choice else problem.predicted_square(choice)
        predicted = math.sqrt(max(square, 0.0))
        bound = math.sqrt(max(found.bound, 0.0))
        return oracle.allocation(choice, predicted_error=predicted, lower_bound=bound)


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
    weights = Weights(problem.steps, len(form))
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
