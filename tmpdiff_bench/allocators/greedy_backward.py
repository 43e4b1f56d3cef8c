"""One step higher at a time, from the cheapest plan."""

from __future__ import annotations

from tmpdiff_bench.allocators.base import Allocation, AllocationProblem
from tmpdiff_bench.allocators.oracle import Oracle, cited, declares
from tmpdiff_bench.allocators.solvers.moves import ladders, next_rungs


@declares(evaluations=lambda steps, levels: max(1, steps * steps * (levels - 1) + 1))
def greedy_backward(problem: AllocationProblem) -> Allocation:
    """Raise one step at a time, always the one whose measured error falls most per added cost.

    From the cheapest plan, every step's next dearer level that the budget has room for is measured
    in each round, until there is room for none. Of all plans measured, the best is returned.
    Marginal analysis (Fox 1966) on measured errors. At most S²(L-1) + 1 evaluations.
    """
    with Oracle(problem, "greedy_backward", cited("fox1966discrete")) as oracle:
        rungs = ladders(problem)
        choice = tuple(levels[-1] for levels in rungs)
        error = oracle(choice)
        while True:
            ranked = [
                (((found := oracle(higher)) - error) / added, added, step, found, higher)
                for step, higher, added in next_rungs(problem, rungs, choice, -1)
                if problem.within(higher)
            ]
            if not ranked:
                return oracle.allocation(oracle.best())
            *_, error, choice = min(ranked)
