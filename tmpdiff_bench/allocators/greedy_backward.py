"""One step higher at a time, from the cheapest plan."""

from __future__ import annotations

from tmpdiff_bench.allocators.base import Allocation, AllocationProblem
from tmpdiff_bench.allocators.oracle import Oracle, cited, declares
from tmpdiff_bench.allocators.solvers.moves import changed, ladder


@declares(evaluations=lambda steps, levels: max(1, steps * steps * (levels - 1) + 1))
def greedy_backward(problem: AllocationProblem) -> Allocation:
    """Raise one step at a time, always the one whose measured error falls most per added cost.

    From the cheapest plan, every step's next dearer level that the budget has room for is measured
    in each round, until there is room for none. Of all plans measured, the best is returned.
    Marginal analysis (Fox 1966) on measured errors. At most S²(L-1) + 1 evaluations.
    """
    with Oracle(problem, "greedy_backward", cited("fox1966discrete")) as oracle:
        ladders = [ladder(problem, step) for step in range(problem.steps)]
        choice = tuple(rungs[-1] for rungs in ladders)
        error = oracle(choice)
        while True:
            ranked = []
            for step, rungs in enumerate(ladders):
                place = rungs.index(choice[step])
                if place == 0:
                    continue
                higher = changed(choice, step, rungs[place - 1])
                if not problem.fits(problem.cost(higher)):
                    continue
                costs = problem.step_costs[step]
                added = costs[rungs[place - 1]] - costs[rungs[place]]
                found = oracle(higher)
                ranked.append(((found - error) / added, added, step, found, higher))
            if not ranked:
                return oracle.allocation(oracle.best())
            *_, error, choice = min(ranked)
