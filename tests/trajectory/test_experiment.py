"""What a recording says of the sampler, and prompts from a user's file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from diffusers import DPMSolverMultistepScheduler

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.trajectory.experiment import _plain, _prompts


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_settings_with_infinities_are_json() -> None:
    """DPM-Solver clips nothing below minus infinity, which JSON does not know."""
    config = _plain(DPMSolverMultistepScheduler().config)
    assert json.loads(json.dumps(config, allow_nan=False))["lambda_min_clipped"] == "-inf"


def test_prompts_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("a ring\na star\na cross\n", encoding="utf-8")
    assert list(_prompts(path, None)["text"]) == ["a ring", "a star", "a cross"]
    assert list(_prompts(path, 2)["text"]) == ["a ring", "a star"]
    with pytest.raises(UsageError, match=r"--num-prompts 4: .* holds 3"):
        _prompts(path, 4)
    assert len(_prompts(None, None)) == 16
