"""The registry, what values say about themselves, scene accuracy, and bad input."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from torch import Tensor

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.files import data_folder
from tmpdiff_bench.metrics import (
    METRICS,
    MetricValue,
    evaluate_images,
    evaluate_latents,
    get_metric,
)
from tmpdiff_bench.zoo.captions import Requirement, require
from tmpdiff_bench.zoo.denoising import scene_accuracy
from tmpdiff_bench.zoo.recogniser import load_recogniser
from tmpdiff_bench.zoo.scenes import sample_scenes


@pytest.fixture(scope="module")
def requirements() -> list[Requirement]:
    """What the fixture `renders` shows."""
    scenes, rng = sample_scenes(40, seed=3, split="test"), np.random.default_rng(0)
    return [require(scenes, row, rng) for row in range(40)]


def test_every_value_names_version_digest_and_resize(renders: Tensor, noisy: Tensor) -> None:
    value = evaluate_images(noisy[:4], renders[:4], ["fid-scenes"])["fid-scenes"]
    shipped = data_folder() / "models" / "recogniser" / "model.safetensors"
    digest = hashlib.sha256(shipped.read_bytes()).hexdigest()
    assert value.weights == (("recogniser/model.safetensors", digest),)
    assert "tmpdiff_bench 0" in value.version
    assert "clean-fid 0" in value.version
    assert value.resize == "8 bit, clean-fid bicubic to 64 x 64"


def test_values_go_through_json(renders: Tensor) -> None:
    found = evaluate_images(renders[:2], renders[:2])
    assert found["psnr"].values == (float("inf"), float("inf"))
    for value in found.values():
        assert MetricValue.from_json(value.to_json()) == value
        json.loads(value.to_json(), parse_constant=pytest.fail)  # strict: no Infinity, no NaN


def test_all_metrics_are_reported_by_default(renders: Tensor, noisy: Tensor) -> None:
    found = evaluate_images(noisy[:2], renders[:2])
    assert list(found) == [m.name for m in METRICS.values() if m.of == "images"]
    for value in found.values():
        assert bool(value.values) != bool(value.not_available)


def test_small_images_have_no_ms_ssim(renders: Tensor, noisy: Tensor) -> None:
    assert evaluate_images(noisy[:2], renders[:2], ["ms_ssim"])["ms_ssim"].not_available == (
        "not available: ms_ssim takes images from 176 pixels a side, these are 64 x 64"
    )


@pytest.mark.parametrize("name", [m.name for m in METRICS.values() if m.smallest > 1])
def test_the_smallest_side_is_enough_and_one_less_is_not(
    name: str, renders: Tensor, noisy: Tensor
) -> None:
    side = METRICS[name].smallest
    pair = [
        torch.nn.functional.interpolate(z[:1].double(), size=side, mode="bilinear")
        for z in (renders, noisy)
    ]
    value = evaluate_images(pair[1], pair[0], [name])[name]
    assert "pixels a side" not in value.not_available
    less = evaluate_images(pair[1][..., 1:], pair[0][..., 1:], [name])[name]
    assert "pixels a side" in less.not_available


def test_scene_accuracy_agrees_with_that_of_the_zoo(
    renders: Tensor, requirements: list[Requirement]
) -> None:
    images = renders.clone()
    images[::4] = images.flip(0)[::4]  # some show another scene
    found = evaluate_images(
        images, renders, ["scene_objects", "scene_all"], requirements=requirements
    )
    expected = scene_accuracy(load_recogniser(), images, requirements)
    assert np.mean(found["scene_all"].values) == pytest.approx(expected.scenes)
    asked = [sum(m.count for m in r.mentions) for r in requirements]
    assert np.average(found["scene_objects"].values, weights=asked) == pytest.approx(
        expected.objects
    )
    assert set(found["scene_all"].values) == {0, 1}


def test_renders_show_what_is_required(renders: Tensor, requirements: list[Requirement]) -> None:
    names = ["scene_objects", "scene_all"]
    found = evaluate_images(renders, renders, names, requirements=requirements)
    for value in found.values():
        assert np.mean(value.values) > 0.95


def test_scene_accuracy_needs_requirements_and_its_size(
    renders: Tensor, requirements: list[Requirement]
) -> None:
    names = ["scene_all"]
    unknown = evaluate_images(renders, renders, names)["scene_all"]
    assert unknown.not_available.endswith("known for Scenes prompts only")
    large = torch.nn.functional.interpolate(renders[:2], size=128)
    value = evaluate_images(large, large, names, requirements=requirements[:2])["scene_all"]
    assert "64 x 64 pixels, these are 128 x 128" in value.not_available
    with pytest.raises(UsageError, match="3 requirements for 40 images"):
        evaluate_images(renders, renders, names, requirements=requirements[:3])


def test_unknown_names_have_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown metric 'lpips_scenes': did you mean 'lpips-sc"):
        get_metric("lpips_scenes")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x * 255, "reach from .* not from 0 to 1"),
        (lambda x: x.where(x < 0.9, torch.nan), "not finite, in rows"),
        (lambda x: x[:, :1], "1 channels, not 3"),
        (lambda x: x[0], r"shape \(3, 64, 64\)"),
        (lambda x: x[:0], "n > 0"),
        (lambda x: x[:2], "psnr compares sample by sample"),
    ],
)
def test_bad_images_are_refused(change, message: str, renders: Tensor) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate_images(change(renders), renders, ["psnr"])


def test_latents_and_images_are_not_confused(renders: Tensor) -> None:
    with pytest.raises(UsageError, match="latent_rmse compares latents: use evaluate_latents"):
        evaluate_images(renders, renders, ["latent_rmse"])
    with pytest.raises(UsageError, match="psnr compares images: use evaluate_images"):
        evaluate_latents(renders, renders, ["psnr"])
    with pytest.raises(UsageError, match="a list of names"):
        evaluate_images(renders, renders, "psnr")
    assert evaluate_latents(renders, renders)["latent_cosine"].values == (1.0,) * 40
