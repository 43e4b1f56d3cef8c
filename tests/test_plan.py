"""Precision plans as values: text, JSON, digest and the plans derived from them."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.plan import MAX_STEPS, PlanSchedule, PrecisionPlan

any_level = st.text(min_size=1, max_size=8).filter(lambda name: not re.search(r"[\s*]", name))
# Few distinct names, so that runs longer than one step and equal plans are common.
levels = st.sampled_from(
    ["bf16", "w4a4", "w4a4+lr32", "native:fp8", "\N{GREEK SMALL LETTER DELTA}"]
)
plans = st.lists(levels | any_level, min_size=1, max_size=12).map(tuple).map(PrecisionPlan)


@given(plans)
def test_text_and_json_round_trip(plan: PrecisionPlan) -> None:
    assert PrecisionPlan.parse(str(plan)) == plan
    assert PrecisionPlan.from_json(plan.to_json()) == plan
    assert str(PrecisionPlan.parse(str(plan))) == str(plan)


@given(plans)
def test_explicit_counts_read_as_the_canonical_text(plan: PrecisionPlan) -> None:
    assert PrecisionPlan.parse(" ".join(f"{level}*1" for level in plan)) == plan
    assert PrecisionPlan.parse("\n".join(plan)) == plan


def test_canonical_text_is_run_length() -> None:
    plan = PrecisionPlan(("bf16",) * 3 + ("w4a4",) * 14 + ("bf16",) * 3)
    assert str(plan) == "bf16*3 w4a4*14 bf16*3"
    assert str(PrecisionPlan(("bf16", "w4a4", "w4a4"))) == "bf16 w4a4*2"


@given(plans, plans)
def test_digests_are_equal_exactly_for_equal_plans(
    one: PrecisionPlan, other: PrecisionPlan
) -> None:
    assert (one.digest == other.digest) == (one == other)
    copy = PrecisionPlan(tuple(one.levels))
    assert copy == one
    assert hash(copy) == hash(one)
    assert copy.digest == one.digest


def test_digest_is_stable_across_releases() -> None:
    # Stored cells are keyed by it: a change here orphans every recording.
    assert PrecisionPlan.parse("bf16*3 w4a4*14 bf16*3").digest == (
        "b900db5e02f5c5e1d79c937466a14165c1d358042d632a9579f56e9868bb8f1a"
    )


@given(plans, st.data(), levels)
def test_replace_changes_one_step(plan: PrecisionPlan, data: st.DataObject, level: str) -> None:
    step = data.draw(st.integers(0, len(plan) - 1))
    changed = plan.replace(step, level)
    assert changed[step] == level
    assert len(changed) == len(plan)
    assert all(changed[other] == plan[other] for other in range(len(plan)) if other != step)
    assert changed.count(level) == plan.count(level) + (plan[step] != level)
    assert changed.replace(step, plan[step]) == plan


@given(plans)
def test_counts_of_the_levels_add_up_to_the_steps(plan: PrecisionPlan) -> None:
    assert sum(plan.count(level) for level in set(plan)) == len(plan) == len(plan.levels)


@given(st.integers(1, 30), st.data())
def test_single_is_uniform_but_for_one_step(steps: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, steps - 1))
    single = PrecisionPlan.single("bf16", "w4a4", step, steps)
    assert single.replace(step, "bf16") == PrecisionPlan.uniform("bf16", steps)
    assert single.count("w4a4") == 1


def test_a_plan_cannot_be_changed() -> None:
    plan = PrecisionPlan.uniform("bf16", 2)
    for field in dataclasses.fields(plan):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(plan, field.name, ("w4a4", "w4a4"))


@pytest.mark.parametrize("step", [-1, 4])
def test_steps_outside_the_loop_are_refused(step: int) -> None:
    plan = PrecisionPlan.uniform("bf16", 4)
    with pytest.raises(UsageError, match=rf"step {step} is outside 0\.\.3"):
        plan.replace(step, "w4a4")
    with pytest.raises(UsageError, match=rf"step {step} is outside 0\.\.3"):
        PrecisionPlan.single("bf16", "w4a4", step, 4)


def test_a_single_plan_of_the_reference_is_refused() -> None:
    with pytest.raises(UsageError, match="'bf16'"):
        PrecisionPlan.single("bf16", "bf16", 0, 4)


@pytest.mark.parametrize("steps", [0, -3, MAX_STEPS + 1])
def test_impossible_numbers_of_steps_are_refused(steps: int) -> None:
    with pytest.raises(UsageError, match=f"got {steps}"):
        PrecisionPlan.uniform("bf16", steps)


@pytest.mark.parametrize("bad", [(), ("",), ("bf 16",), ("bf16*2",), (None,), (["bf16"],)])
def test_bad_levels_are_refused(bad: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=r"bad level name|got 0"):
        PrecisionPlan(bad)


@pytest.mark.parametrize("bad", ["bf16", ["bf16"]])
def test_levels_that_are_not_a_tuple_are_refused(bad: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="takes a tuple"):
        PrecisionPlan(bad)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "got 0"),
        ("  ", "got 0"),
        ("bf16*0", "'bf16*0'"),
        ("bf16*-1", "'bf16*-1'"),
        ("bf16*", "'bf16*'"),
        ("*3", "'*3'"),
        ("bf16 * 3", "'*'"),
        ("bf16*3*2", "'bf16*3*2'"),
        ("bf16*1.5", "'bf16*1.5'"),
        ("bf16*03", "'bf16*03'"),
        ("bf16*\N{ARABIC-INDIC DIGIT THREE}", "bad run"),
        ("bf16*3 w4a4*9999999999", "got 10000000002"),
    ],
)
def test_malformed_text_is_refused(text: str, named: str) -> None:
    with pytest.raises(UsageError, match=re.escape(named)):
        PrecisionPlan.parse(text)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "can't be read"),
        ("{", "can't be read"),
        pytest.param("[" * 100_000, "can't be read", id="deeply nested"),
        ('["bf16"]', "got list"),
        ("null", "got NoneType"),
        ('{"levels": ["bf16"]}', "the fields ['levels']"),
        ('{"schema_version": 1}', "the fields ['schema_version']"),
        ('{"levels": ["bf16"], "schema_version": 1, "note": ""}', "'note'"),
        ('{"levels": ["bf16"], "levels": ["w4a4"], "schema_version": 1}', "twice"),
        ('{"levels": ["bf16"], "schema_version": 2}', "version 2"),
        ('{"levels": ["bf16"], "schema_version": true}', "version True"),
        ('{"levels": ["bf16"], "schema_version": 1.0}', "version 1.0"),
        ('{"levels": "bf16", "schema_version": 1}', "'bf16'"),
        ('{"levels": [], "schema_version": 1}', "got 0"),
        ('{"levels": [16], "schema_version": 1}', "bad level name 16"),
        ('{"levels": [["bf16"]], "schema_version": 1}', "bad level name ['bf16']"),
        *[
            (f'{{"levels": ["bf16"], "schema_version": 1, "schedule": {schedule}}}', named)
            for schedule, named in (
                ("null", "an object of ['scheduler', 'sigmas', 'timesteps'], got None"),
                ('{"scheduler": "S", "sigmas": [1]}', "an object of ['scheduler', 'sigmas'"),
                ('{"scheduler": "S", "sigmas": 1, "timesteps": null}', "are lists or null"),
                ('{"scheduler": 1, "sigmas": [1], "timesteps": null}', "scheduler's class, got 1"),
                ('{"scheduler": "S", "sigmas": null, "timesteps": null}', "got neither"),
                ('{"scheduler": "S", "sigmas": [NaN], "timesteps": null}', "no number of JSON"),
                ('{"scheduler": "S", "sigmas": ["1"], "timesteps": null}', "finite numbers"),
                ('{"scheduler": "S", "sigmas": [1, 0], "timesteps": null}', "1 steps, its sch"),
            )
        ],
    ],
)
def test_malformed_json_is_refused(text: str, named: str) -> None:
    with pytest.raises(UsageError, match=re.escape(named)):
        PrecisionPlan.from_json(text)


@given(plans, st.sampled_from(["levels", "schema_version"]))
def test_json_without_a_field_is_refused(plan: PrecisionPlan, field: str) -> None:
    content = json.loads(plan.to_json())
    del content[field]
    with pytest.raises(UsageError, match="the fields"):
        PrecisionPlan.from_json(json.dumps(content))


MADE_FOR = PlanSchedule("Euler", (1.0, 0.8), (1000.0, 800.0))


def test_a_schedule_goes_with_a_plan_and_is_no_part_of_it() -> None:
    plan, bare = PrecisionPlan(("bf16", "w4a4"), MADE_FOR), PrecisionPlan(("bf16", "w4a4"))
    assert plan == bare
    assert (hash(plan), plan.digest) == (hash(bare), bare.digest)
    back = PrecisionPlan.from_json(plan.to_json())
    assert back.schedule == plan.replace(0, "w4a4").schedule == MADE_FOR
    assert back.to_json() == plan.to_json()
    assert "schedule" not in json.loads(bare.to_json())
    with pytest.raises(UsageError, match="the plan has 3 steps, its schedule 2 noise levels"):
        PrecisionPlan(("bf16",) * 3, MADE_FOR)


@pytest.mark.parametrize(
    ("sigmas", "timesteps", "text"),
    [
        ((1.0, 0.807), None, None),
        ((1.0, 0.809), None, "step 1 has sigma 0.8 in the plan (Euler), 0.809 in the run (Heun)"),
        ((1.1, 0.6), None, "step 1 has sigma 0.8 in the plan (Euler), 0.6 in the run (Heun)"),
        (None, (1000.0, 809.0), None),
        (None, (985.0, 800.0), "step 0 has timestep 1000 in the plan (Euler), 985 in the run"),
        ((1.0, 0.8), (1.0, 1.0), None),  # sigmas are what a network sees; timesteps count anyhow
    ],
)
def test_runs_whose_noise_differs_by_more_than_one_percent(
    sigmas: tuple[float, ...] | None, timesteps: tuple[float, ...] | None, text: str | None
) -> None:
    found = MADE_FOR.difference(PlanSchedule("Heun", sigmas, timesteps))
    assert found == text if text is None else str(found).startswith(text)


def test_noise_that_is_counted_in_other_units_is_said_to_be() -> None:
    run = PlanSchedule("DDIM", timesteps=(999.0, 0.0))
    found = PlanSchedule("Euler", (1.0, 0.5)).difference(run)
    assert found is not None
    assert "Euler" in found
    assert "DDIM" in found
