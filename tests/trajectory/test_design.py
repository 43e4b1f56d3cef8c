"""Properties that every design has."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.plan import JointPlan, PrecisionPlan
from tmpdiff_bench.trajectory.design import KINDS, joint_design

LEVELS = ("fp32", "w8a8", "w4a8", "w4a4")
sizes = {
    "count": st.integers(2, 4),
    "steps": st.integers(1, 24),
    "per_level": st.integers(1, 25),
    "complements": st.integers(0, 5),
    "mixed": st.integers(0, 8),
    "rng": st.integers(0, 2**32 - 1),
}


def low(joint: JointPlan) -> set[str]:
    return set(joint.plan.levels) - {"fp32"}


@settings(max_examples=60, deadline=None)
@given(**sizes)
def test_every_design(count, steps, per_level, complements, mixed, rng):
    levels = LEVELS[:count]
    options = {"per_level": per_level, "complements": complements, "mixed": mixed}
    design = joint_design(levels, steps, **options, rng=rng)
    assert design == joint_design(levels, steps, **options, rng=rng)
    plans = [joint.plan for joint in design]
    assert len(set(plans)) == len(plans)
    assert all(len(plan) == steps and steps - plan.count("fp32") >= 2 for plan in plans)
    for level in levels[1:]:
        own = [joint for joint in design if low(joint) == {level}]
        designed = [joint for joint in own if joint.kind != "complement"]
        assert len(designed) == min(per_level, 2**steps - steps - 1)
        assert (PrecisionPlan.uniform(level, steps) in plans) == (steps > 1)
        assert len(own) - len(designed) <= complements
        assert all(joint.plan.count("fp32") == 1 for joint in own if joint.kind == "complement")
        assert sum(joint.held_out for joint in designed) == round(len(designed) / 3)
    several = [joint for joint in design if len(low(joint)) > 1]
    assert len(several) <= (mixed if count > 2 else 0)
    assert {joint.kind for joint in several} <= {"mixed"}
    assert all(joint.held_out for joint in several)
    assert not any(joint.held_out for joint in design if joint.kind == "complement")


@settings(max_examples=30, deadline=None)
@given(per_level=st.integers(11, 30), rng=st.integers(0, 2**32 - 1))
def test_held_out_plans_are_spread_over_the_strata(per_level, rng):
    design = joint_design(LEVELS[:2], 20, per_level=per_level, complements=0, mixed=0, rng=rng)
    counts = [joint.plan.count("w8a8") for joint in design]
    assert counts == sorted(counts)
    assert len(set(counts)) == 1 + round((per_level - 1) / 5)
    held = [joint.held_out for joint in design]
    # one of every three in order of the number of low steps
    assert all(sum(held[i : i + 3]) == 1 for i in range(0, len(held) - 2, 3))
    kinds = Counter(joint.kind for joint in design)
    assert set(kinds) == {*KINDS, "uniform"}


def test_regular_masks_are_what_they_say():
    design = joint_design(LEVELS[:2], 8, per_level=6, complements=0, mixed=0)
    masks = {joint.kind: str(joint.plan) for joint in design}
    assert masks.pop("random")
    assert masks == {
        "first": "w8a8*4 fp32*4",
        "last": "fp32*4 w8a8*4",
        "middle": "fp32*2 w8a8*4 fp32*2",
        "alternating": "fp32 w8a8 fp32 w8a8 fp32 w8a8 fp32 w8a8",
        "uniform": "w8a8*8",
    }


def test_complements_are_spread_over_the_steps():
    design = joint_design(LEVELS[:2], 20, per_level=6, complements=4, mixed=0)
    high = [j.plan.levels.index("fp32") for j in design if j.kind == "complement"]
    assert high == [2, 7, 12, 17]


def test_random_masks_do_not_prefer_any_step():
    counts: Counter[int] = Counter()
    for rng in range(60):
        for joint in joint_design(LEVELS[:2], 10, per_level=11, complements=0, mixed=0, rng=rng):
            if joint.kind == "random":
                counts.update(s for s in range(10) if joint.plan[s] == "w8a8")
    share = [counts[step] / sum(counts.values()) for step in range(10)]
    assert max(share) < 0.14
    assert min(share) > 0.07


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_short_runs_get_what_exists(steps):
    design = joint_design(LEVELS[:2], steps, per_level=9, complements=4, mixed=0)
    assert len(design) == 2**steps - steps - 1


@pytest.mark.parametrize(
    ("levels", "steps", "per_level", "mixed", "message"),
    [
        (("fp32",), 4, 3, 0, "at least one other level, each once; got ('fp32',)"),
        (("fp32", "fp32"), 4, 3, 0, "each once; got ('fp32', 'fp32')"),
        (("fp32", "w4a4"), 0, 3, 0, "at least 1 step and 1 plan per level, got 0 and 3"),
        (("fp32", "w4a4"), 4, 0, 0, "at least 1 step and 1 plan per level, got 4 and 0"),
        (("fp32", "w4a4"), 4, 3, -1, "numbers of plans can't be negative: -1"),
    ],
)
def test_impossible_designs(levels, steps, per_level, mixed, message):
    with pytest.raises(UsageError) as caught:
        joint_design(levels, steps, per_level=per_level, complements=0, mixed=mixed)
    assert message in str(caught.value)
