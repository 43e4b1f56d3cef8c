"""Features for distances between sets: what clean-fid itself gives for saved images."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from cleanfid import fid
from cleanfid.resize import make_resizer
from PIL import Image
from torch import Tensor, nn

from tmpdiff_bench.metrics import evaluate_images, features
from tmpdiff_bench.metrics.features import SCENES_SIDE, ScenesFeatures, resized, scenes_features
from tmpdiff_bench.metrics.weights import INCEPTION, Weight, scenes_recogniser, sha256_of


def enlarged(images: Tensor, side: int) -> Tensor:
    return nn.functional.interpolate(images, size=side, mode="bilinear").clamp(0, 1)


@pytest.mark.parametrize("side", [64, 96])
def test_clean_fid_reads_the_same_from_a_folder(
    side: int, tmp_path: Path, renders: Tensor, noisy: Tensor
) -> None:
    sets = [enlarged(images[:12], side) for images in (renders, noisy)]
    network = ScenesFeatures(scenes_recogniser("cpu"))
    resize = make_resizer("PIL", False, "bicubic", (SCENES_SIDE, SCENES_SIDE))
    read = []
    for name, images in zip(("reference", "images"), sets, strict=True):
        files = []
        for i, image in enumerate(images):
            pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
            files.append(str(tmp_path / f"{name}-{i:02d}.png"))
            Image.fromarray(pixels).save(files[-1])
        read.append(
            fid.get_files_features(
                files,
                model=network,
                num_workers=0,
                device=torch.device("cpu"),
                custom_fn_resize=resize,
                verbose=False,
            )
        )
        np.testing.assert_allclose(scenes_features(images), read[-1], rtol=1e-4, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses an argument of scipy's that will go
        expected = fid.fid_from_feats(*(r.astype(np.float64) for r in read))
    found = evaluate_images(sets[1], sets[0], ["fid-scenes"])["fid-scenes"]
    assert list(found.values) == pytest.approx([expected], rel=1e-3)
    assert found.resize == "8 bit, clean-fid bicubic to 64 x 64"


def test_resizing_to_the_same_size_only_rounds(renders: Tensor) -> None:
    expected = (renders[:3] * 255).round()
    assert torch.equal(resized(renders[:3], 64), expected)


def test_distances_grow_with_the_disturbance(renders: Tensor) -> None:
    noise = torch.randn(renders.shape, generator=torch.Generator().manual_seed(1))
    for name in ("fid-scenes", "kid-scenes"):
        found = [
            evaluate_images((renders + s * noise).clamp(0, 1), renders, [name])[name].values[0]
            for s in (0.02, 0.05, 0.1, 0.2)
        ]
        assert found == sorted(found)
        assert found[0] < found[-1] / 4


def test_few_images_are_noted(renders: Tensor, noisy: Tensor) -> None:
    value = evaluate_images(noisy, renders[:30], ["fid-scenes"])["fid-scenes"]
    assert value.note == "30 images for 96 features: compare at equal numbers only"
    assert (value.samples, value.reference_samples) == (40, 30)
    one = evaluate_images(noisy[:1], renders, ["kid-scenes"])["kid-scenes"]
    assert one.not_available == "not available: kid-scenes takes two images or more on each side"


class InPlaceOfInception(nn.Module):
    """Features of images in [-1, 1], in the form of the published file."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AvgPool2d(299), nn.Flatten(), nn.Linear(3, 2048))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_inception_of_clean_fids_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renders: Tensor, noisy: Tensor
) -> None:
    monkeypatch.setattr(Weight, "folder", lambda weight: tmp_path)
    names = ["fid", "kid"]
    for value in evaluate_images(noisy[:4], renders[:4], names).values():
        assert value.not_available == (
            "not available: inception-2015-12-05.pt is not in the cache of clean-fid"
        )
    assert list(tmp_path.iterdir()) == []  # nothing was fetched

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is to go, the published file is of it
        torch.manual_seed(0)
        stand_in = InPlaceOfInception()
        torch.jit.script(stand_in).save(str(tmp_path / INCEPTION.file))
    digest = sha256_of(tmp_path / INCEPTION.file)
    refused = evaluate_images(noisy[:4], renders[:4], ["fid"])["fid"]
    assert "damaged or another file" in refused.not_available

    monkeypatch.setattr(features, "INCEPTION", dataclasses.replace(INCEPTION, sha256=digest))
    found = evaluate_images(noisy[:4], renders[:4], names)
    with torch.no_grad():
        x, y = (
            stand_in((resized(images[:4], 299) - 128) / 128).double().numpy()
            for images in (noisy, renders)
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kernel = fid.kernel_distance(x, y, num_subsets=1)
    gap = ((x.mean(0) - y.mean(0)) ** 2).sum()
    assert found["kid"].values[0] == pytest.approx(kernel, rel=1e-3, abs=1e-6)
    assert found["fid"].values[0] >= gap * (1 - 1e-3)
    assert dict(found["fid"].weights) == {INCEPTION.file: digest}
    assert "299 x 299" in found["fid"].resize
