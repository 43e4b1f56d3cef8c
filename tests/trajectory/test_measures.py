"""Metrics of a recording: by name, per prompt and seed, with reasons where they can't be had."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toy import LEVELS as FUNCTIONS
from tests.toy import SHAPE, decoded, toy_banks
from tests.trajectory.test_recorder import JOINT, LEVELS, setup, workload
from tmpdiff_bench.additivity import analyse
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.metrics import evaluate_images
from tmpdiff_bench.trajectory import Recording, recorder
from tmpdiff_bench.trajectory.assembly import DEFAULT, Measures, chosen_metrics
from tmpdiff_bench.trajectory.jobs import Jobs
from tmpdiff_bench.trajectory.recorder import record_setup

ASKED = ("psnr", "lpips-scenes", "scene_objects", "ssim", "lpips")


@pytest.fixture
def toy_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "level_banks", toy_banks(FUNCTIONS))
    monkeypatch.setattr("torch.hub.get_dir", lambda: "/nowhere")


def make(folder: Path, **changes: Any) -> Recording:
    return record_setup(dataclasses.replace(setup(), **changes), folder)


@pytest.mark.usefixtures("toy_levels")
def test_values_are_those_of_the_images(tmp_path: Path) -> None:
    found = make(tmp_path, metrics=ASKED)
    names = ["latent_rmse", "latent_mse", "psnr", "lpips-scenes", "ssim"]
    assert list(found.table["metric"].unique()) == names
    finals = [found.reference, found.reference + found.joint[1]]
    images = [decoded(torch.from_numpy(x).reshape(-1, *SHAPE)) for x in finals]
    expected = evaluate_images(images[1], images[0], names[2:])
    rows = found.table[found.table["plan"] == str(found.plans[1])]
    for name in names[2:]:
        stored = rows[rows["metric"] == name].set_index(["prompt_id", "seed"])["value"]
        assert stored.loc[list(found.samples)].tolist() == pytest.approx(
            expected[name].values, rel=1e-3
        )
    about = found.manifest["metrics"]
    assert about["lpips"]["not_available"].startswith("not available: alexnet-owt-7be5be79.pth")
    assert "64 x 64 pixels, these are 32 x 32" in about["scene_objects"]["not_available"]
    assert list(about["lpips-scenes"]["weights"]) == ["recogniser/model.safetensors"]
    with pytest.raises(UsageError, match="lpips was not measured: not available: alexnet"):
        analyse(found, metrics=["lpips"])
    with pytest.raises(UsageError, match="psnr is no error: it is not 0 for the reference"):
        analyse(found, metrics=["psnr"])


def test_the_default_metrics_leave_keys_as_they_were() -> None:
    before = Jobs(workload(), LEVELS, JOINT, "terminal", {})
    default = Measures(DEFAULT, (32, 32))
    other = Measures(("psnr",), (32, 32))
    keys = [
        Jobs(workload(), LEVELS, JOINT, "terminal", {}, measures.key)
        for measures in (default, other)
    ]
    assert keys[0].key == before.key
    assert keys[0].keys == before.keys
    assert keys[1].key != before.key
    # the floor and replicates hold no metrics, so other metrics share them
    assert set(keys[1].keys) & set(before.keys)
    assert set(keys[1].keys) != set(before.keys)


def test_names_are_checked() -> None:
    assert chosen_metrics(["psnr", "latent_mse", "psnr"]) == ("latent_rmse", "latent_mse", "psnr")
    with pytest.raises(UsageError, match="did you mean 'lpips-scenes'"):
        chosen_metrics(["lpips_scenes"])
    with pytest.raises(UsageError, match="fid-scenes compares sets of images"):
        chosen_metrics(["fid-scenes"])
