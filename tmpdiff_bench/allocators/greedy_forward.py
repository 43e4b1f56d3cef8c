"""One step lower at a time, from the reference."""

from __future__ import annotations

from tmpdiff_bench.allocators.base import Allocation, AllocationProblem
from tmpdiff_bench.allocators.oracle import Oracle, cited, declares
from tmpdiff_bench.allocators.solvers.moves import changed, ladder


@declares(evaluations=lambda steps, levels: max(1, steps * steps * (levels - 1) + 1))
def greedy_forward(problem: AllocationProblem) -> Allocation:
    """Lower one step at a time, always the one whose measured error rises least per saved cost.

    From the reference plan, every step's next cheaper level is measured in each round, until the
    plan is within the budget. Of the plans measured, the best within the budget is returned (the
    last round may have met a better one than it went on with). Marginal analysis (Fox 1966) on
    measured errors, as the usual greedy of mixed-precision search, over steps. At most
    S²(L-1) + 1 evaluations.
    """
    with Oracle(problem, "greedy_forward", cited("fox1966discrete")) as oracle:
        ladders = [ladder(problem, step) for step in range(problem.steps)]
        choice, error = (0,) * problem.steps, 0.0
        while not problem.fits(problem.cost(choice)):
            ranked = []
            for step, rungs in enumerate(ladders):
                place = rungs.index(choice[step])
                if place + 1 == len(rungs):
                    continue
                costs = problem.step_costs[step]
                saved = costs[rungs[place]] - costs[rungs[place + 1]]
                lower = changed(choice, step, rungs[place + 1])
                found = oracle(lower)
                ranked.append(((found - error) / saved, -saved, step, found, lower))
            *_, error, choice = min(ranked)
        oracle(choice)
        return oracle.allocation(oracle.best())
