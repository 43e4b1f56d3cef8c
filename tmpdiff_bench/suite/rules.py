"""Which allocators run on which tasks: ours, and anybody's by name, which are checked first."""

from __future__ import annotations

import importlib
import itertools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tmpdiff_bench.allocators import ALLOCATORS, Allocation
from tmpdiff_bench.allocators.base import COST_TOLERANCE
from tmpdiff_bench.allocators.contract import ContractError, check
from tmpdiff_bench.errors import UsageError, one_line
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.suite.tasks import Group, Task
from tmpdiff_bench.suite.v1 import COST_TABLE, PROMPT_SETS, TARGETS, TWO

FEWER_STEPS = "fewer_steps"
REFERENCE = "reference"
OURS = (*ALLOCATORS, FEWER_STEPS)
EXHAUSTIVE_STEPS = 8
# At 20 steps each of these measures 40 to 580 plans for one target, of 300 to 2,000 network steps a
# sample: all of them on all tasks would take hours. Two of them have one task there, in the middle.
SEARCHES = ("random_search", "greedy_forward", "greedy_backward", "beam", "evolutionary")
SEARCHES_ONCE = ("greedy_backward", "beam")
Allocate = Callable[..., Allocation]


def left_out(task: Task, allocator: str) -> str:
    """Why an allocator of ours does not run on a task; empty where it does."""
    if task.steps <= EXHAUSTIVE_STEPS:
        return ""
    if allocator == "exhaustive":
        return f"{len(task.levels)}^{task.steps} plans are too many to run"
    if allocator not in SEARCHES:
        return ""
    too_many = f"at {task.steps} steps it measures too many plans"
    if allocator not in SEARCHES_ONCE:
        return too_many
    middle = (PROMPT_SETS[0], TWO, TARGETS[task.model][TWO][1])
    if (task.prompt_set, task.levels, task.target_speedup) != middle:
        return (
            f"{too_many}: it runs on {PROMPT_SETS[0]}, {' '.join(TWO)}, the target between the "
            "others"
        )
    return ""


def running(task: Task, contributed: Mapping[str, Allocate]) -> dict[str, Allocate]:
    """The allocators that run on a task, by name; contributed ones run on all."""
    ours = {name: allocate for name, allocate in ALLOCATORS.items() if not left_out(task, name)}
    return {**ours, **contributed}


def every_plan(group: Group) -> list[list[PrecisionPlan]]:
    """For each level set all plans within the largest budget of its tasks, those of sets before
    left out: lists that depend on the group alone, whichever of its tasks are run.
    """
    if group.steps > EXHAUSTIVE_STEPS:
        return []
    lists, seen = [], set[PrecisionPlan]()
    for levels, targets in TARGETS[group.model].items():
        table = COST_TABLE.format(model=group.model)
        least = Task(group.model, group.prompt_set, levels, table, min(targets), group.steps)
        costs = least.step_costs()
        budget = math.fsum(costs[:, 0]) / least.target_speedup * (1 + COST_TOLERANCE)
        found = [
            PrecisionPlan(tuple(levels[level] for level in choice))
            for choice in itertools.product(range(len(levels)), repeat=group.steps)
            if math.fsum(costs[range(group.steps), choice]) <= budget
        ]
        lists.append([plan for plan in found if plan not in seen])
        seen.update(found)
    return lists


def load_allocators(names: Sequence[str]) -> dict[str, Allocate]:
    """Import `package.module:function` each, and run it through the contract check.

    Modules are also found in the working folder.

    Raises:
        UsageError: a name that is not of this form, of nothing that can be called, given twice, or
            of an allocator that breaks the contract.
    """
    found: dict[str, Allocate] = {}
    for name in names:
        if name in found or name in OURS:
            raise UsageError(f"--allocator {name} is given twice, or is one of ours")
        found[name] = _checked(name, _load(name))
    return found


def _load(name: str) -> Allocate:
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise UsageError(f"--allocator {name!r} is not of the form package.module:function")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module), attribute, None)
    except Exception as error:  # whatever a stranger's module raises: the one line names it
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise UsageError(f"--allocator {name}: {module} can't be imported ({reason})") from error
    if not callable(function):
        raise UsageError(f"--allocator {name}: {module} has no function {attribute!r}")
    allocate: Allocate = function
    return allocate


def _checked(name: str, allocate: Allocate) -> Allocate:
    try:
        check(allocate)
    except ContractError as error:
        raise UsageError(
            f"--allocator {name} breaks the contract of allocators: {error}"
        ) from error
    return allocate
