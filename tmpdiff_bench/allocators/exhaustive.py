"""Every plan."""

from __future__ import annotations

import itertools
import math

from tmpdiff_bench.allocators.base import Allocation, AllocationProblem
from tmpdiff_bench.allocators.oracle import Oracle, cited, declares
from tmpdiff_bench.errors import UsageError

MAX_PLANS = 2**16


@declares(evaluations=lambda steps, levels: levels**steps)
def exhaustive(problem: AllocationProblem) -> Allocation:
    """Measure every plan within the budget, and take the best: the optimum, for small S.

    Plans come in lexical order, so that plans which share a prefix follow each other. At most L^S
    evaluations.

    Raises:
        UsageError: there are more than 2^16 plans; the message says how many.
    """
    levels, steps = len(problem.levels), problem.steps
    if levels**steps > MAX_PLANS:
        exponent = steps * math.log10(levels)  # the number itself may be too large to print
        number = f"{levels**steps:,}" if exponent < 12 else f"some 10^{exponent:.0f}"
        raise UsageError(
            f"{levels} levels at {steps} steps make {levels}^{steps} = {number} plans: "
            f"exhaustive search takes at most {MAX_PLANS:,}"
        )
    with Oracle(problem, "exhaustive", cited("tmpdiff_bench")) as oracle:
        for choice in itertools.product(range(levels), repeat=steps):
            if problem.within(choice):
                oracle(choice)
        plan = oracle.best()
        return oracle.allocation(plan, lower_bound=oracle(problem.choice(plan)))
