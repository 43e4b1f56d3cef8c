"""Allocators: which level shall each denoising step run at, within a budget of cost?

All share one signature, `allocate(problem, *, options) -> Allocation`, and need numpy only.
"""

from tmpdiff_bench.allocators import contract
from tmpdiff_bench.allocators.base import (
    Allocation,
    AllocationProblem,
    Allocator,
    InfeasibleBudgetError,
    Measurement,
    MeasurementError,
    regret,
)
from tmpdiff_bench.allocators.beam import beam
from tmpdiff_bench.allocators.bisection import bisection
from tmpdiff_bench.allocators.evolutionary import evolutionary
from tmpdiff_bench.allocators.exhaustive import exhaustive
from tmpdiff_bench.allocators.first_last import first_last
from tmpdiff_bench.allocators.gram import FrontPoint, gram, gram_front
from tmpdiff_bench.allocators.greedy_backward import greedy_backward
from tmpdiff_bench.allocators.greedy_forward import greedy_forward
from tmpdiff_bench.allocators.knapsack import knapsack
from tmpdiff_bench.allocators.oracle import Declared, Oracle, declares, evaluation_bound
from tmpdiff_bench.allocators.random_search import random_search
from tmpdiff_bench.allocators.registry import ALLOCATORS, get_allocator
from tmpdiff_bench.allocators.uniform import uniform

__all__ = [
    "ALLOCATORS",
    "Allocation",
    "AllocationProblem",
    "Allocator",
    "Declared",
    "FrontPoint",
    "InfeasibleBudgetError",
    "Measurement",
    "MeasurementError",
    "Oracle",
    "beam",
    "bisection",
    "contract",
    "declares",
    "evaluation_bound",
    "evolutionary",
    "exhaustive",
    "first_last",
    "get_allocator",
    "gram",
    "gram_front",
    "greedy_backward",
    "greedy_forward",
    "knapsack",
    "random_search",
    "regret",
    "uniform",
]
