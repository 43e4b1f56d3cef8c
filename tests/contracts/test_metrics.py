"""What every metric of the registry promises, through one suite."""

from __future__ import annotations

import dataclasses
import math
from functools import cache

import pytest
import torch
from torch import Tensor

from tmpdiff_bench.metrics import METRICS, MetricValue, get_metric
from tmpdiff_bench.metrics.base import Comparison
from tmpdiff_bench.zoo.captions import Requirement, sample_captions
from tmpdiff_bench.zoo.scenes import render, sample_scenes


def count(name: str) -> int:
    """Images a side: four, or two where a metric takes large ones only and so takes seconds."""
    return 2 if METRICS[name].smallest > 64 else 4


@cache
def sides(name: str) -> tuple[Tensor, Tensor, list[Requirement]]:
    """A pair of a size that the metric takes, and what was asked of the images."""
    scenes = sample_scenes(100, seed=5, split="test")
    rows, captions = sample_captions(scenes, seed=5, reserved=True)
    reference = torch.from_numpy(render(scenes))[rows[: count(name)]]
    if METRICS[name].smallest > 64:
        reference = torch.nn.functional.interpolate(reference, size=METRICS[name].smallest)
    asked = [c.requirement for c in captions[: count(name)]]
    noise = torch.randn(reference.shape, generator=torch.Generator().manual_seed(0))
    return (reference + 0.1 * noise).clamp(0, 1), reference, asked


@cache
def forward(name: str) -> MetricValue:
    """The metric of the pair, computed once for all tests."""
    return METRICS[name](Comparison(*sides(name)))


def measured(name: str, *comparison) -> tuple[float, ...]:
    return values_of(METRICS[name](Comparison(*comparison)))


def values_of(value: MetricValue) -> tuple[float, ...]:
    if value.not_available:
        assert value.not_available.startswith("not available: ")
        assert value.values == ()
        pytest.skip(value.not_available)  # published weights can't ship: that it says so is tested
    return value.values


def close(values: tuple[float, ...]):
    return pytest.approx(values, rel=1e-4, abs=1e-6)


pytestmark = pytest.mark.parametrize("name", METRICS)


def test_is_registered_under_its_name(name: str) -> None:
    assert get_metric(name).name == name
    assert get_metric(name).unit


def test_gives_one_finite_value_for_each_sample_or_for_the_set(name: str) -> None:
    values = values_of(forward(name))
    assert len(values) == (count(name) if METRICS[name].per == "sample" else 1)
    assert all(map(math.isfinite, values))


def test_nothing_is_better_than_the_reference_itself(name: str) -> None:
    _, reference, requirements = sides(name)
    metric = METRICS[name]
    same = measured(name, reference, reference, requirements)
    other = values_of(forward(name))
    if not metric.symmetric:  # of the images alone: those of other prompts are worse
        assert sum(same) > sum(measured(name, reference.roll(1, 0), reference, requirements))
        return
    for a, b in zip(same, other, strict=True):
        assert a > b if metric.higher_is_better else a < b
        if metric.identical is not None:
            assert a == pytest.approx(metric.identical, abs=1e-6)


def test_symmetric_where_it_says_so(name: str) -> None:
    x, reference, requirements = sides(name)
    if METRICS[name].symmetric:
        assert values_of(forward(name)) == close(measured(name, reference, x))
    else:  # the reference plays no part
        assert values_of(forward(name)) == measured(name, x, x, requirements)


def test_independent_of_batch_and_order(name: str) -> None:
    x, reference, requirements = sides(name)
    values = values_of(forward(name))
    backwards = measured(name, x.flip(0), reference.flip(0), requirements[::-1])
    assert backwards == close(values[::-1])
    if METRICS[name].per == "sample":
        alone = [
            measured(name, x[i : i + 1], reference[i : i + 1], requirements[i : i + 1])[0]
            for i in range(len(x))
        ]
        assert alone == close(values)


def test_leaves_its_input_alone(name: str) -> None:
    x, reference, requirements = sides(name)
    before = x.clone(), reference.clone()
    pair = (x[:1], reference[:1]) if METRICS[name].per == "sample" else (x, reference)
    measured(name, *pair, requirements[: len(pair[0])])
    assert torch.equal(x, before[0])
    assert torch.equal(reference, before[1])


def test_the_value_describes_the_metric(name: str) -> None:
    value, n = forward(name), count(name)
    assert (value.metric, value.samples, value.reference_samples) == (name, n, n)
    assert value.version.startswith("tmpdiff_bench ")
    assert value.resize
    assert MetricValue.from_json(value.to_json()) == value
    for item in dataclasses.fields(value):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, item.name, "another")
