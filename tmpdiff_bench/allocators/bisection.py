"""Intervals of steps, measured whole and split where it matters."""

from __future__ import annotations

import math

import numpy as np

from tmpdiff_bench.allocators.base import (
    Allocation,
    AllocationProblem,
    Choice,
    InfeasibleBudgetError,
    along,
)
from tmpdiff_bench.allocators.options import number
from tmpdiff_bench.allocators.oracle import Oracle, cited, declares
from tmpdiff_bench.allocators.solvers.intervals import (
    Estimates,
    Filling,
    Forest,
    Leaf,
    fill,
    possible_gains,
)
from tmpdiff_bench.allocators.solvers.multiple_choice import cheapest_choice
from tmpdiff_bench.errors import UsageError

_SAFETY = 0.9  # of the tolerance that a plan over it would have needed
_RETRIES = 50
_ROUNDING = 1e-12
_AT_ONCE = 32  # one in so many intervals is split before the budget is filled anew


@declares(evaluations=lambda steps, levels: max(1, 2 * steps * (levels - 1)))
def bisection(
    problem: AllocationProblem,
    *,
    tolerance: float | None = None,
    max_evaluations: int | None = None,
    verify: bool = False,
    power: float = 1.0,
) -> Allocation:
    """TMPDiff's adaptive bisection, as we reconstructed it from the abstract of arXiv 2603.14062.

    The paper's own algorithm may differ. E(I) is the measured error with exactly the steps of an
    interval I at a low level. If errors add up, splitting I costs one measurement, of its left
    half: the right half's error is the difference (`verify=True` measures it too). `power=2` takes
    squares of errors to add up instead (H2).

    *Speedup mode* (default): every low level starts with one interval of all steps, the cheapest
    level first. The budget is filled with steps of least error per saved cost, an interval's error
    being spread over its steps. Then intervals are split: first the one that straddles the budget
    line, then the one whose split could change the choice most (of 64 intervals or more a 32nd
    at once, as filling anew takes time); until no split can, or
    `max_evaluations` (default 2S(L-1)) are spent. Anything from L evaluations gives a sensible
    plan; the full number gives the optimum if errors add up and step costs are equal.

    *Tolerance mode*: an interval goes low whole if its error is within its share (by steps) of
    `tolerance`, else it is split; steps refused at the cheapest level are offered to the next. If
    the plan then measures above the tolerance, all shares are made smaller and decided anew.
    Returns the cheapest plan within both the tolerance and the budget (`for_speedup(1)`: any).

    At most 2S(L-1) evaluations, that of the plan included, in either mode. Of all plans measured
    the best is returned.

    Raises:
        InfeasibleBudgetError: tolerance mode found no plan within the budget.
    """
    power = number("power", power)
    if power <= 0:
        raise UsageError(f"power is {power}: a positive number is needed")
    if tolerance is not None:
        tolerance = number("tolerance", tolerance, 0)
    source, limit = cited("tmpdiff2026"), max_evaluations
    with Oracle(problem, "bisection", source, limit=limit, allocator=bisection) as oracle:
        forest = Forest(problem, oracle, power, verify)
        if tolerance is not None:
            return _within_tolerance(forest, tolerance)
        if problem.fits(problem.reference_cost):
            return oracle.allocation((0,) * problem.steps, predicted_error=0.0)
        return _within_budget(forest)


def _within_budget(forest: Forest) -> Allocation:
    """Speedup mode."""
    problem, oracle = forest.problem, forest.oracle
    if _has_no_choice(problem):
        return oracle.allocation(problem.cheapest)
    for level in _cheapest_first(problem):
        steps = [step for step, saved in enumerate(forest.saved(level)) if saved > 0]
        if steps and oracle.left > 1:
            forest.plant(level, steps)
    while True:
        estimates = Estimates.of(problem, forest.leaves)
        filling = fill(problem, estimates, forest.leaves)
        splits = _next_splits(forest, estimates, filling)
        if not splits or oracle.left <= 1:
            break
        for leaf in splits:
            if oracle.left > 1:
                forest.split(leaf)
    choice = filling.choice
    if all(len(leaf.steps) == 1 for leaf in forest.leaves) and not _equal_pair(problem):
        exact, total, _ = cheapest_choice(problem, estimates.mean)
        if total < along(estimates.mean, choice):
            choice = exact
    oracle(choice)
    plan = problem.choice(oracle.best())
    total = along(estimates.mean, plan)
    predicted = total ** (1 / forest.power) if math.isfinite(total) else None
    return oracle.allocation(plan, predicted_error=predicted, intervals=forest.decided(plan))


def _next_splits(forest: Forest, estimates: Estimates, filling: Filling) -> list[Leaf]:
    """The interval that straddles the budget line, else that with most to gain; none at the end.

    Of many intervals (64 and more) a 32nd at once, those with most to gain.
    """
    problem, leaves = forest.problem, forest.leaves
    step, level = filling.last
    count = max(len(leaves) // _AT_ONCE, 1)
    long = [leaf for leaf in leaves if len(leaf.steps) > 1]
    here = [leaf for leaf in long if leaf.level == level and step in leaf.steps]
    first = [leaf for leaf in here if any(filling.choice[s] != level for s in leaf.steps)]
    if len(first) >= count:
        return first
    gains = possible_gains(problem, estimates, filling, leaves)
    rounding = _ROUNDING * max((leaf.weight for leaf in leaves), default=0.0)
    ranked = sorted(range(len(leaves)), key=lambda i: (-gains[i], i))
    found = [leaves[i] for i in ranked if gains[i] > rounding and leaves[i] not in first]
    if first or found:
        return [*first, *found][:count]
    # nothing can change at this price of cost; without a gap to the budget that is optimal
    left_over = problem.budget - problem.cost(filling.choice)
    if _equal_pair(problem) or (not filling.trimmed and filling.price * left_over <= rounding):
        return []
    return sorted(long, key=lambda leaf: -leaf.weight)[:count]


def _equal_pair(problem: AllocationProblem) -> bool:
    """Whether there are two levels, and every step saves the same: then the budget is a count."""
    saved = problem.step_costs[:, 0] - problem.step_costs[:, -1]
    return len(problem.levels) == 2 and bool((abs(saved - saved[0]) <= 1e-12 * saved[0]).all())


def _has_no_choice(problem: AllocationProblem) -> bool:
    """Whether the cheapest plan is the only one within the budget."""
    least, second, *_ = np.sort(problem.step_costs, axis=1).T
    return not problem.fits(math.fsum(least) + float((second - least).min()))


def _cheapest_first(problem: AllocationProblem) -> list[int]:
    totals = [math.fsum(column) for column in problem.step_costs.T]
    return sorted(range(1, len(totals)), key=lambda level: (totals[level], level))


def _within_tolerance(forest: Forest, tolerance: float) -> Allocation:
    """Tolerance mode."""
    problem, oracle = forest.problem, forest.oracle
    target, reference = tolerance, (0,) * problem.steps
    for _ in range(_RETRIES):
        if oracle.left <= 1:  # the last one is for the plan
            break
        forest.leaves, forest.inner = [], []
        choice = _accepted(forest, forest.raised(target) / problem.steps)
        error = 0.0 if choice == reference else oracle(choice)
        if error <= tolerance:
            break
        target *= _SAFETY * tolerance / error
    within = [
        problem.choice(m.plan)
        for m in oracle.measured
        if m.error <= tolerance and problem.within(m.plan)
    ]
    if problem.fits(problem.reference_cost):
        within.append(reference)
    if not within:
        raise InfeasibleBudgetError(
            f"no plan with an error of at most {tolerance:.6g} was found within the budget of "
            f"{problem.budget:.6g}: allow a larger error, or more cost"
        )
    best = min(within, key=problem.cost)
    return oracle.allocation(best, intervals=forest.decided(best))


def _accepted(forest: Forest, share: float) -> Choice:
    """Take intervals low whose weight is at most `share` per step, from the cheapest level on."""
    problem, oracle = forest.problem, forest.oracle
    choice = [0] * problem.steps
    offered = list(range(problem.steps))
    for level in _cheapest_first(problem):
        saved = forest.saved(level)
        steps = [step for step in offered if saved[step] > 0]
        if not steps or oracle.left <= 1:
            continue
        waiting = [forest.plant(level, steps)]
        while waiting:
            leaf = waiting.pop()
            if leaf.weight <= share * len(leaf.steps) * (1 + _ROUNDING):
                for step in leaf.steps:
                    choice[step] = level
            elif len(leaf.steps) > 1 and oracle.left > 1:
                waiting += reversed(forest.split(leaf))
        offered = [step for step in offered if choice[step] == 0]
    return tuple(choice)
