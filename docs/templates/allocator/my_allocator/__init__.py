"""An allocator to copy: the cheapest plan, then steps raised while the budget lasts."""

import numpy as np

from tmpdiff_bench.allocators import Allocation, AllocationProblem, Oracle, declares


@declares(lambda steps, levels: steps * (levels - 1) + 1)  # distinct plans measured, at most
def raise_worst(problem: AllocationProblem) -> Allocation:
    """Begin with every step at its cheapest level; raise the steps that hurt most, where it fits.

    Takes single errors as the problem has them, or measures them: S(L-1) + 1 evaluations.
    """
    with Oracle(problem, "raise_worst", "") as oracle:  # counts, and checks what is measured
        singles = oracle.singles()
        choice = list(problem.cheapest)
        steps = np.arange(problem.steps)
        harm = singles[steps, choice]
        for step in np.argsort(-harm, kind="stable"):  # stable: ties break the same way each time
            raised = [*choice[:step], 0, *choice[step + 1 :]]
            if problem.fits(problem.cost(raised)):
                choice = raised
        oracle(choice)
        return oracle.allocation(tuple(choice))
