"""Counts of the prefix tree against the formulas, and against plans listed by brute force."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tmpdiff_bench.plan import PrecisionPlan, nodes_per_step
from tmpdiff_bench.trajectory.tree import Work, grow, root

LEVELS = ("high", "mid", "low")


@pytest.mark.parametrize("steps", [1, 2, 7, 20])
@pytest.mark.parametrize("count", [2, 3])
def test_formulas(steps: int, count: int) -> None:
    """All singles, and all plans (DESIGN §5)."""
    levels = LEVELS[:count]
    singles = [PrecisionPlan.uniform(levels[0], steps)] + [
        PrecisionPlan.single(levels[0], level, step, steps)
        for level in levels[1:]
        for step in range(steps)
    ]
    expected = steps + (count - 1) * steps * (steps + 1) // 2
    assert sum(nodes_per_step(singles)) == expected
    if steps <= 7:
        plans = [PrecisionPlan(p) for p in itertools.product(levels, repeat=steps)]
        assert sum(nodes_per_step(plans)) == (count ** (steps + 1) - count) // (count - 1)


plans_of_five = st.lists(
    st.lists(st.sampled_from(LEVELS), min_size=5, max_size=5).map(
        lambda levels: PrecisionPlan(tuple(levels))
    ),
    min_size=1,
    max_size=20,
)


@given(plans_of_five)
def test_counts_are_those_of_distinct_prefixes(plans: list[PrecisionPlan]) -> None:
    expected = [len({plan.levels[:k] for plan in plans}) for k in range(1, 6)]
    assert nodes_per_step(plans) == expected
    tree = root()
    work = Work.of([grow(tree, plan) for plan in plans], {tree}, 5)
    assert work.starts == [tree]
    assert work.widths(tree) == [1, *expected]
    held = [1, *expected[:-1], 0]  # leaves are results
    assert work.peak([tree]) == max(a + b for a, b in itertools.pairwise(held))


@given(plans_of_five, st.integers(0, 5))
def test_what_is_at_hand_is_not_computed_again(plans: list[PrecisionPlan], depth: int) -> None:
    """With the first plan known down to some depth, only what leaves it below is left to do."""
    tree = root()
    leaves = [grow(tree, plan) for plan in plans]
    known = {node for node in leaves[0].path() if node.depth <= depth}
    work = Work.of(leaves, known, 5)
    computed = {child for children in work.children.values() for child in children}
    distinct = {node for leaf in leaves for node in leaf.path()}
    assert computed == distinct - known
    assert all(start in known for start in work.starts)
