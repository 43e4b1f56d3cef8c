"""What a recording says of the sampler and of its prompts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from diffusers import DPMSolverMultistepScheduler

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.trajectory import Recording, record_model
from tmpdiff_bench.trajectory.experiment import _plain


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_settings_with_infinities_are_json() -> None:
    """DPM-Solver clips nothing below minus infinity, which JSON does not know."""
    config = _plain(DPMSolverMultistepScheduler().config)
    assert json.loads(json.dumps(config, allow_nan=False))["lambda_min_clipped"] == "-inf"


def recorded(
    folder: Path, count: int | None, file: Path | None = None, prompt_set: str | None = None
) -> Recording:
    return record_model(
        "sd3",
        folder=folder,
        joint=lambda: [],
        levels=("fp32", "w4a4"),
        steps=1,
        num_prompts=count,
        num_seeds=1,
        guidance=1.0,
        seed=0,
        device="cpu",
        max_batch=4,
        state_memory=2**28,
        prompts=file,
        prompt_set=prompt_set,
    )


def test_prompts_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("a ring\na star\na cross\n", encoding="utf-8")
    manifest = recorded(tmp_path / "out", None, path).manifest
    assert list(manifest["workload"]["prompts"].values()) == ["a ring", "a star", "a cross"]
    assert manifest["dataset"] == "mine"
    assert manifest["prompt_set"] == {
        "name": "mine",
        "split": "calibration",
        "file": "mine.txt",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    with pytest.raises(UsageError, match="4 prompts asked for: mine has 1 to 3"):
        recorded(tmp_path / "more", 4, path)


def test_prompts_of_a_set(tmp_path: Path) -> None:
    recording = recorded(tmp_path / "out", 2, prompt_set="scenes-counts")
    assert all(name.startswith("counts-cali") for name in recording.prompts)
    assert recording.manifest["dataset"] == "scenes-counts"
    assert recording.manifest["prompt_set"]["licence"] == "Apache-2.0"
