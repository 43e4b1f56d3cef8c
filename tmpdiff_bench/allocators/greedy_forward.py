"""One step lower at a time, from the reference."""

from __future__ import annotations

from tmpdiff_bench.allocators.base import Allocation, AllocationProblem
from tmpdiff_bench.allocators.oracle import Oracle, cited, declares
from tmpdiff_bench.allocators.solvers.moves import ladders, next_rungs


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
        rungs = ladders(problem)
        choice, error = (0,) * problem.steps, 0.0
        while not problem.within(choice):
            ranked = [
                (((found := oracle(lower)) - error) / -added, added, step, found, lower)
                for step, lower, added in next_rungs(problem, rungs, choice, 1)
            ]
            *_, error, choice = min(ranked)
        oracle(choice)
        return oracle.allocation(oracle.best())
