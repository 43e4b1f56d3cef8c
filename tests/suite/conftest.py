"""A suite on toy pipelines: real runner, store and scoring, arithmetic that costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trajectory.conftest import ToyBank, ToyPipeline
from tmpdiff_bench.suite import bench
from tmpdiff_bench.suite.results import SuiteResults
from tmpdiff_bench.suite.runner import run_suite
from tmpdiff_bench.suite.v1 import PROMPT_SETS, Profile

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "fp32": lambda x: -x,
    "w8a8": lambda x: -x + 0.01 * torch.sin(9 * x),
    "w4a4": lambda x: -x + 0.1 * torch.cos(5 * x),
}
TOY = Profile("quick", ("sd3",), PROMPT_SETS[:2], (8, 20), (8,), calibration=2, evaluation=3)
TINY = Profile("quick", ("sd3",), PROMPT_SETS[:1], (8,), (), calibration=2, evaluation=2)


class GuidedToy(ToyPipeline):
    """Images of 64 pixels, which the recogniser reads, and two passes a step."""

    def nfe(self, step: int) -> int:
        return 2

    def decode(self, latents: Tensor) -> Tensor:
        images = super().decode(latents)
        return images.repeat_interleave(2, 2).repeat_interleave(2, 3)


@dataclass(frozen=True)
class ToyModel:
    family: str
    weights: str = "embedded"
    digest: str = "0" * 64
    title: str = "toy"

    @property
    def pipeline(self) -> Any:
        return SimpleNamespace(scheduler=SimpleNamespace(config={"shift": 3.0}))

    def stepwise(self, *, steps: int, guidance: float) -> ToyPipeline:
        return GuidedToy(steps, guidance)


def toy_model(model: str, dtype: str = "fp32") -> ToyModel:
    return ToyModel(model)


@pytest.fixture(scope="session")
def toys() -> Any:
    """Toys in the place of models, for the whole session of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "load_model", toy_model)
        patch.setattr(bench, "LevelBank", lambda *_: ToyBank(FUNCTIONS))
        yield


@pytest.fixture(scope="session")
def toy_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("suite") / "cells"


@pytest.fixture(scope="session")
def toy_results(toys: None, toy_store: Path) -> SuiteResults:
    """All tasks of the toy profile."""
    return run_suite(TOY, toy_store)
