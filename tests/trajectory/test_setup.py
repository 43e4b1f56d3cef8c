"""What a recording says of the sampler and of its prompts."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import nn

from tests.tiny import TINY
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.experiment import Experiment
from tmpdiff_bench.trajectory import Recording, record
from tmpdiff_bench.trajectory.workload import sampler

SIZE = {"height": 64, "width": 64, "max_sequence_length": 16}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_settings_with_infinities_are_json() -> None:
    """DPM-Solver clips nothing below minus infinity, which JSON does not know."""
    config = sampler(DPMSolverMultistepScheduler())
    assert json.loads(json.dumps(config, allow_nan=False))["lambda_min_clipped"] == "-inf"


def recorded(folder: Path, count: int | None, **more: Any) -> Recording:
    asked = Experiment(
        "sd3", levels=("fp32", "w4a4"), steps=1, num_prompts=count, num_seeds=1, max_batch=4, **more
    )
    return record(asked, folder)


def test_prompts_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("a ring\na star\na cross\n", encoding="utf-8")
    manifest = recorded(tmp_path / "out", None, prompts=path).manifest
    assert list(manifest["workload"]["prompts"].values()) == ["a ring", "a star", "a cross"]
    assert manifest["dataset"] == "mine"
    assert manifest["prompt_set"] == {
        "name": "mine",
        "split": "calibration",
        "file": "mine.txt",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    with pytest.raises(UsageError, match="4 prompts asked for: mine has 1 to 3"):
        recorded(tmp_path / "more", 4, prompts=path)


def test_prompts_of_a_set(tmp_path: Path) -> None:
    recording = recorded(tmp_path / "out", 2, prompt_set="scenes-counts")
    assert all(name.startswith("counts-cali") for name in recording.prompts)
    assert recording.manifest["dataset"] == "scenes-counts"
    assert recording.manifest["prompt_set"]["licence"] == "Apache-2.0"


def test_a_pipeline_at_hand_is_its_own_reference(tmp_path: Path) -> None:
    pipe = TINY["StableDiffusion3Pipeline"].build()
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
        nn.Module.to(getattr(pipe, part), torch.bfloat16)
    asked = Experiment(weights=pipe, steps=2, num_prompts=1, num_seeds=1, call=SIZE)
    assert asked.levels[0] == asked.dtype == "bf16"
    assert record(asked, tmp_path / "own").manifest["workload"]["dtype"] == "bfloat16"
    with pytest.raises(UsageError, match="--dtype bf16 leaves no fp32 to compare with"):
        Experiment(weights=pipe, levels=("fp32", "w4a4"))
    with pytest.raises(UsageError, match=r"in torch\.float64: fp32, bf16, fp16 are supported"):
        Experiment(weights=TINY["StableDiffusion3Pipeline"].build().to(torch.float64))


def test_every_denoiser_calibrates_and_that_is_counted(tmp_path: Path) -> None:
    tiny = TINY["WanPipeline-two-experts"]
    own = ("prompt", "num_inference_steps", "output_type", "generator")
    asked = Experiment(
        weights=tiny.build(),
        levels=("fp32", "w4a4+lr2"),
        steps=2,
        prompts=["a red circle"],
        num_seeds=1,
        call={name: value for name, value in tiny.call.items() if name not in own},
    )
    nfe = record(asked, tmp_path / "two").manifest["nfe"]
    assert nfe["computed"] == nfe["spent"]


def test_nothing_else_is_printed(tmp_path: Path) -> None:
    """By a library's user, who has turned bars off: what is loaded, and what levels will take."""
    code = (
        "import tmpdiff_bench as tb\n"
        "levels = ('fp32', 'w4a4')\n"
        "small = tb.Experiment('sd3', levels=levels, steps=1, num_prompts=1, num_seeds=1)\n"
        "tb.record(small, 'mine')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "TQDM_DISABLE": "1"},
        capture_output=True,
        text=True,
    )
    loaded, takes = done.stderr.splitlines()
    assert loaded.startswith("sd3 (embedded) in fp32: text_encoder")
    assert takes.startswith("weights:")
    assert (done.returncode, done.stdout) == (0, "")
