"""Beam search over steps."""

from __future__ import annotations

from tmpdiff_bench.allocators.base import Allocation, AllocationProblem, Choice
from tmpdiff_bench.allocators.options import whole
from tmpdiff_bench.allocators.oracle import Oracle, cited, declares
from tmpdiff_bench.allocators.solvers.moves import changed, ladders

WIDTH = 4


@declares(evaluations=lambda steps, levels: steps * WIDTH * levels + 1)
def beam(problem: AllocationProblem, *, width: int = WIDTH) -> Allocation:
    """Decide step by step, keeping the `width` most promising beginnings of plans.

    A beginning is measured with all later steps at the reference. It promises its measured error
    plus, for the cost that the later steps must still save, the error per saved cost of the
    cheapest plan. Beginnings that could not get within the budget are dropped. Beam search (Lowerre
    1976), over steps as AdaTSQ does over layers and steps. At most S · width · L + 1 evaluations.
    """
    width = whole("width", width, 1)
    with Oracle(problem, "beam", cited("lowerre1976harpy")) as oracle:
        rungs = ladders(problem)
        cheapest = tuple(levels[-1] for levels in rungs)
        need = problem.reference_cost - problem.budget
        savable = problem.reference_cost - problem.cost(cheapest)
        if problem.fits(problem.reference_cost):
            return oracle.allocation((0,) * problem.steps)
        rate = oracle(cheapest) / savable

        def promise(choice: Choice) -> tuple[float, Choice]:
            missing = need - (problem.reference_cost - problem.cost(choice))
            return oracle(choice) + rate * max(missing, 0.0), choice

        beginnings: list[Choice] = [(0,) * problem.steps]
        for step in range(problem.steps):
            longer = [changed(c, step, level) for c in beginnings for level in rungs[step]]
            possible = [
                c for c in longer if problem.within((*c[: step + 1], *cheapest[step + 1 :]))
            ]
            beginnings = sorted(possible, key=promise)[:width]
        return oracle.allocation(oracle.best())
