"""LPIPS: the package's own values, with a stand-in for the published network, and Scenes' own."""

from __future__ import annotations

import dataclasses
import warnings
from itertools import pairwise
from pathlib import Path

import lpips
import pytest
import torch
from torch import Tensor
from torchvision.models import AlexNet_Weights, VGG16_Weights, alexnet

from tmpdiff_bench.metrics import evaluate_images, perceptual, weights
from tmpdiff_bench.metrics.perceptual import lpips_scenes
from tmpdiff_bench.metrics.weights import ALEXNET, VGG, sha256_of
from tmpdiff_bench.zoo.recogniser import load_recogniser


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch.hub."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_scenes_distance_by_hand(renders: Tensor, noisy: Tensor) -> None:
    """Unit vectors over channels, squared gaps, mean over places, sum over stages."""
    recogniser, expected = load_recogniser(), torch.zeros(6)
    with torch.no_grad():
        stages = zip(recogniser.features(renders[:6]), recogniser.features(noisy[:6]), strict=True)
        for a, b in stages:
            a, b = (z / z.norm(dim=1, keepdim=True).clamp(min=1e-10) for z in (a, b))
            expected += (a - b).square().sum(1).mean((1, 2))
    found = lpips_scenes(noisy[:6], renders[:6])
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    assert (found > 0.01).all()
    assert (found < 6).all()


def test_scenes_distance_grows_with_the_disturbance(renders: Tensor) -> None:
    x = renders[:6]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    found = [lpips_scenes((x + s * noise).clamp(0, 1), x) for s in (0.02, 0.05, 0.1, 0.2)]
    for less, more in pairwise(found):
        assert (less < more).all()


def test_the_global_random_stream_is_left_alone(renders: Tensor) -> None:
    perceptual._scenes.cache_clear()
    weights._load.cache_clear()
    torch.manual_seed(0)
    lpips_scenes(renders[:1], renders[1:2])
    drawn = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(3))


def test_absent_networks_are_named(hub: Path, renders: Tensor, noisy: Tensor) -> None:
    found = evaluate_images(noisy[:2], renders[:2], ["lpips", "lpips-vgg", "lpips-scenes"])
    assert found["lpips"].not_available == (
        "not available: alexnet-owt-7be5be79.pth is not in the cache of torch.hub"
    )
    assert "vgg16-397923af.pth" in found["lpips-vgg"].not_available
    assert found["lpips"].values == found["lpips-vgg"].values == ()
    assert len(found["lpips-scenes"].values) == 2
    assert list(hub.iterdir()) == []  # nothing was fetched


def test_another_file_of_that_name_is_refused(hub: Path, renders: Tensor) -> None:
    (hub / ALEXNET.file).write_bytes(b"not the network")
    value = evaluate_images(renders[:1], renders[:1], ["lpips"])["lpips"]
    assert "damaged or another file" in value.not_available
    assert value.values == ()


def test_files_are_those_that_torchvision_looks_for() -> None:
    """The package asks torchvision for them: under another name it would download."""
    assert AlexNet_Weights.IMAGENET1K_V1.url.endswith("/" + ALEXNET.file)
    assert VGG16_Weights.IMAGENET1K_V1.url.endswith("/" + VGG.file)


def test_a_cached_network_gives_the_packages_value(
    hub: Path, monkeypatch: pytest.MonkeyPatch, renders: Tensor, noisy: Tensor
) -> None:
    """With random weights in the published format, which shows the path, not the figures."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        shapes = alexnet().state_dict()
    generator = torch.Generator().manual_seed(0)
    state = {
        # the classifier plays no part: one number stands for all of it
        key: torch.zeros(()).expand(value.shape)
        if key.startswith("classifier")
        else 0.1 * torch.randn(value.shape, generator=generator)
        for key, value in shapes.items()
    }
    torch.save(state, hub / ALEXNET.file)
    weight = dataclasses.replace(ALEXNET, sha256=sha256_of(hub / ALEXNET.file))
    monkeypatch.setitem(perceptual.NETWORKS, "alex", weight)

    found = evaluate_images(noisy[:3], renders[:3], ["lpips"])["lpips"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = lpips.LPIPS(net="alex", verbose=False)
    with torch.no_grad():
        expected = package(2 * noisy[:3] - 1, 2 * renders[:3] - 1).flatten()
    assert found.values == pytest.approx(expected.tolist(), rel=1e-5)
    assert min(found.values) > 0
    assert dict(found.weights)[ALEXNET.file] == weight.sha256
    assert set(dict(found.weights)) == {ALEXNET.file, "lpips/v0.1/alex.pth"}
