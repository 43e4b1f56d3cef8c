"""A suite on toy pipelines: real runner, store and scoring, arithmetic that costs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toy import LEVELS, toy, toy_banks
from tmpdiff_bench.pipelines import LoadedModel
from tmpdiff_bench.suite import bench
from tmpdiff_bench.suite.results import SuiteResults
from tmpdiff_bench.suite.runner import run_suite
from tmpdiff_bench.suite.v1 import PROMPT_SETS, Profile

TOY = Profile("quick", ("sd3",), PROMPT_SETS[:2], (8, 20), (8,), calibration=2, evaluation=3)
TINY = Profile("quick", ("sd3",), PROMPT_SETS[:1], (8,), (), calibration=2, evaluation=2)
# images of 64 pixels, which the recogniser reads, and two passes a step
DEFAULTS = {"guidance_scale": 4.0, "height": 64, "width": 64}


def toy_model(model: str, dtype: str = "fp32") -> LoadedModel:
    pipe = toy().to(torch.bfloat16 if dtype == "bf16" else torch.float32)
    return LoadedModel(model, pipe, "embedded", "0" * 64, torch.device("cpu"), DEFAULTS)


@pytest.fixture(scope="session")
def toys() -> Any:
    """Toys in the place of models, for the whole session of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "load_pipeline", toy_model)
        patch.setattr(bench, "level_banks", toy_banks(LEVELS))
        yield


@pytest.fixture(scope="session")
def toy_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("suite") / "cells"


@pytest.fixture(scope="session")
def toy_results(toys: None, toy_store: Path) -> SuiteResults:
    """All tasks of the toy profile."""
    return run_suite(TOY, toy_store)
