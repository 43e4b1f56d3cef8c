"""Allocators by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tmpdiff_bench.allocators.base import Allocation
from tmpdiff_bench.allocators.beam import beam
from tmpdiff_bench.allocators.bisection import bisection
from tmpdiff_bench.allocators.evolutionary import evolutionary
from tmpdiff_bench.allocators.exhaustive import exhaustive
from tmpdiff_bench.allocators.first_last import first_last
from tmpdiff_bench.allocators.gram import gram
from tmpdiff_bench.allocators.greedy_backward import greedy_backward
from tmpdiff_bench.allocators.greedy_forward import greedy_forward
from tmpdiff_bench.allocators.knapsack import knapsack
from tmpdiff_bench.allocators.random_search import random_search
from tmpdiff_bench.allocators.uniform import uniform
from tmpdiff_bench.errors import check_known

ALLOCATORS: Mapping[str, Callable[..., Allocation]] = {
    "uniform": uniform,
    "first_last": first_last,
    "random_search": random_search,
    "greedy_forward": greedy_forward,
    "greedy_backward": greedy_backward,
    "bisection": bisection,
    "knapsack": knapsack,
    "gram": gram,
    "beam": beam,
    "evolutionary": evolutionary,
    "exhaustive": exhaustive,
}


def get_allocator(name: str) -> Callable[..., Allocation]:
    """The allocator of a name. Raises `UsageError` with the nearest name for an unknown one."""
    check_known("allocator", name, ALLOCATORS)
    return ALLOCATORS[name]
