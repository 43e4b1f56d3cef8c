"""Policies: what is written is what diffusers' own parser reads, and nothing malformed is read."""

from __future__ import annotations

import copy
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from diffusers.pipelines.cosmos.mixed_precision import (
    FIRST_LAST_N_FP8_POLICY,
    Cosmos3MixedPrecisionConfig,
)
from hypothesis import given
from hypothesis import strategies as st

from tmpdiff_bench.deploy import StepPolicy, export
from tmpdiff_bench.deploy.formats import from_comma
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.plan import PrecisionPlan

ROOT = Path(__file__).parents[2]
_NAME = "diffusion_step_policy"
modes = st.sampled_from(["a16", "native"])
policies = st.builds(StepPolicy, st.integers(0, 12), st.integers(0, 12), modes, modes)


def parsed(text: str) -> Cosmos3MixedPrecisionConfig:
    """What the installed diffusers makes of an exported policy, in an FP8 checkpoint."""
    config = json.loads(text)["quantization_config"]
    return Cosmos3MixedPrecisionConfig.resolve(
        quantization_config={**config, "quant_method": "modelopt", "quant_algo": "FP8"}
    )


def levels(config: Cosmos3MixedPrecisionConfig, steps: int) -> tuple[str, ...]:
    names = {"W8A16": "high", "W8A8": "low"}
    return tuple(names[config.precision_name(step, steps)] for step in range(steps))


@given(policies, st.integers(1, 16))
def test_diffusers_runs_the_steps_that_the_plan_says(policy: StepPolicy, steps: int) -> None:
    config = parsed(policy.to_json())
    assert config.format == "fp8"
    assert levels(config, steps) == policy.plan(steps, high="high", low="low").levels
    assert (
        config.reasoner_policy.split("_")[0] == {"a16": "high", "native": "base"}[policy.reasoner]
    )


@given(policies)
def test_round_trip(policy: StepPolicy) -> None:
    assert StepPolicy.from_json(policy.to_json()) == policy
    nested = json.loads(policy.to_json())["quantization_config"]
    for content in (nested, nested["runtime"], nested["runtime"]["diffusion_step_policy"]):
        assert StepPolicy.from_json(json.dumps(content)) == policy
    config = {
        "_class_name": "Cosmos3",
        "quantization_config": {"quant_method": "modelopt"} | nested,
    }
    assert StepPolicy.from_json(json.dumps(config)) == policy


@pytest.mark.parametrize("steps", range(1, 8))
def test_every_plan_is_exported_right_or_refused(steps: int) -> None:
    """By the definition: a plan has a policy where its low steps are one run, or none."""
    for choice in itertools.product(("high", "low"), repeat=steps):
        plan = PrecisionPlan(choice)
        low = [i for i, level in enumerate(choice) if level == "low"]
        one_run = low == list(range(low[0], low[-1] + 1)) if low else steps > 1
        if one_run:
            text = export(plan, "diffusion-step-policy", high="high")
            assert levels(parsed(text), steps) == plan.levels
            assert StepPolicy.from_json(text).plan(steps, high="high", low="low") == plan
        else:
            with pytest.raises(UsageError, match="no first-last policy says"):
                export(plan, "diffusion-step-policy", high="high")


def test_the_policy_of_official_checkpoints_is_read() -> None:
    policy = StepPolicy.from_json(json.dumps(FIRST_LAST_N_FP8_POLICY))
    assert policy == StepPolicy(3, 3)
    assert json.loads(policy.to_json()) == {
        "quantization_config": {"runtime": {"diffusion_step_policy": FIRST_LAST_N_FP8_POLICY}}
    }


def test_a_window_of_native_mode_is_none() -> None:
    policy = copy.deepcopy(FIRST_LAST_N_FP8_POLICY)
    policy["first_steps"] = {"count": 7, "mode": "native"}
    assert StepPolicy.from_json(json.dumps(policy)) == StepPolicy(0, 3)


COUNT = 2
ODD: list[Any] = [
    None,
    True,
    False,
    -1,
    0.5,
    1.0,
    COUNT,
    "1",
    "",
    [],
    {},
    [1],
    {"a": 1},
    "transformer",
]


def malformed() -> list[tuple[str, Any]]:
    """Every field missing, of every odd value, with every odd member; unknown fields."""
    good = FIRST_LAST_N_FP8_POLICY
    found: list[tuple[str, Any]] = [("unknown field", {**good, "note": 1})]
    for name, value in good.items():
        found.append((f"no {name}", {k: v for k, v in good.items() if k != name}))
        found += [(f"{name}={odd!r}", {**good, name: odd}) for odd in ODD]
        if isinstance(value, dict):
            found.append((f"{name} with more", {**good, name: {**value, "more": 1}}))
            for member in value:
                rest = {k: v for k, v in value.items() if k != member}
                found.append((f"{name} without {member}", {**good, name: rest}))
                odd_members = [odd for odd in ODD if member != "count" or odd is not COUNT]
                found += [
                    (f"{name}.{member}={odd!r}", {**good, name: {**rest, member: odd}})
                    for odd in odd_members
                ]
    for name in ("overlap", "reasoner", "default_mode"):
        found += [(f"{name}={mode}", {**good, name: mode}) for mode in ("A16", " a16", "w8a16")]
    found += [
        ("scope twice", {**good, "scope": ["transformer", "transformer"]}),
        ("scope more", {**good, "scope": ["transformer", "vae"]}),
        ("version", {**good, "schema_version": 10**30}),
    ]
    found += [(f"root={odd!r}", odd) for odd in ODD]
    found += [(f"policy={odd!r}", {"runtime": {"diffusion_step_policy": odd}}) for odd in ODD]
    return found


@pytest.mark.parametrize(("name", "content"), malformed(), ids=[name for name, _ in malformed()])
def test_malformed_policies_are_refused(name: str, content: Any) -> None:
    with pytest.raises(UsageError):
        StepPolicy.from_json(json.dumps(content))


words = st.sampled_from(["a16", "native", "transformer", "first_last_n", "count", "mode", ""])
scalars = st.none() | st.booleans() | st.integers(-2, 9) | st.floats(allow_nan=False) | words
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(words, inner, max_size=2)
)


@given(st.data())
def test_nothing_is_read_that_diffusers_refuses(data: st.DataObject) -> None:
    """A policy with anything in any place, or without it: what is read here is read there alike."""
    policy: dict[str, Any] = copy.deepcopy(FIRST_LAST_N_FP8_POLICY)
    windows = [policy["first_steps"], policy["last_steps"]]
    place = data.draw(st.sampled_from([policy, policy, *windows]))
    name = data.draw(st.sampled_from(sorted(place)) | words)
    place.pop(name, None)
    if data.draw(st.integers(0, 4)):
        place[name] = data.draw(anything)
    try:
        ours = StepPolicy.from_json(json.dumps(policy))
    except UsageError:
        return
    theirs = parsed(json.dumps({"quantization_config": {"runtime": {_NAME: policy}}}))
    for steps in (1, 2, 5, 9):
        assert levels(theirs, steps) == ours.plan(steps, high="high", low="low").levels


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 100_000,
        json.dumps(FIRST_LAST_N_FP8_POLICY)[:-1] + ', "overlap": "native"}',
        json.dumps(FIRST_LAST_N_FP8_POLICY).replace('"count": 3', '"count": NaN', 1),
        json.dumps(FIRST_LAST_N_FP8_POLICY).replace('"count": 3', '"count": 3, "count": 4', 1),
    ],
    ids=["empty", "cut", "deep", "field twice", "nan", "member twice"],
)
def test_texts_that_are_no_json_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        StepPolicy.from_json(text)


@pytest.mark.parametrize("bad", [-1, True, 1.0, "1"])
def test_counts_are_whole_numbers(bad: Any) -> None:
    with pytest.raises(UsageError, match="0 or more is needed"):
        StepPolicy(bad, 0)


def test_high_and_low_differ() -> None:
    with pytest.raises(UsageError, match="both are 'fp32'"):
        StepPolicy(1, 1).plan(4, high="fp32", low="fp32")


names = st.text("abw48+:", min_size=1, max_size=6)


@given(st.lists(names, min_size=1, max_size=20).map(tuple).map(PrecisionPlan))
def test_comma_lists_and_json_round_trip(plan: PrecisionPlan) -> None:
    assert from_comma(export(plan, "comma")) == plan
    assert PrecisionPlan.from_json(export(plan, "json")) == plan


def test_bad_formats_and_comma_lists_are_refused() -> None:
    plan = PrecisionPlan.parse("fp32 w4a4")
    with pytest.raises(UsageError, match="did you mean 'comma'"):
        export(plan, "commas")
    with pytest.raises(UsageError, match="has a comma"):
        export(PrecisionPlan(("a,b",)), "comma")
    for text in ("", "fp32,,w4a4", "fp32 w4a4"):
        with pytest.raises(UsageError):
            from_comma(text)


def test_policies_need_no_torch() -> None:
    program = (
        "import sys; from tmpdiff_bench.deploy import StepPolicy, export, project;"
        "StepPolicy(1, 1).to_json(); assert not {'torch', 'diffusers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
