"""The training loop: killed and resumed it ends where an unbroken run ends."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.zoo.training import Schedule, load_average, read_log, train


class Regression:
    """Learns a known linear map; one matrix by Muon, the rest by AdamW."""

    name = "regression"

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.modules = nn.ModuleDict({"net": nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))})
        self._truth = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))

    def is_hidden_matrix(self, parameter: str) -> bool:
        return parameter == "net.0.weight"

    def loss(self, iteration: int, generator: torch.Generator) -> Tensor:
        x = torch.randn(32, 8, generator=generator)
        error: Tensor = (self.modules["net"](x) - x @ self._truth).square().mean()
        return error

    def evaluate(self) -> dict[str, float]:
        with torch.no_grad():
            return {"error": float(self.loss(0, torch.Generator().manual_seed(9)))}


SCHEDULE = Schedule(60, 5e-2, warm_up=5, average_decay=0.9)


def run(folder: Path, schedule: Schedule = SCHEDULE, seed: int = 0) -> tuple[Regression, float]:
    part = Regression()
    figures = train(part, schedule, folder, seed=seed, evaluate_every=20, checkpoint_every=10)
    return part, figures["error"]


def test_it_learns(tmp_path: Path) -> None:
    untrained = Regression().evaluate()["error"]
    part, error = run(tmp_path)
    assert error < 0.2 * untrained
    assert part.evaluate()["error"] == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize("at", [3, 10, 37])
def test_resumed_runs_end_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    whole, _ = run(tmp_path / "whole")
    real = Regression.loss

    def dies(self: Regression, iteration: int, generator: torch.Generator) -> Tensor:
        if iteration == at:
            raise KeyboardInterrupt
        return real(self, iteration, generator)

    monkeypatch.setattr(Regression, "loss", dies)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken")
    monkeypatch.setattr(Regression, "loss", real)
    resumed, _ = run(tmp_path / "broken")
    for a, b in zip(whole.modules.parameters(), resumed.modules.parameters(), strict=True):
        assert torch.equal(a, b)


def test_runs_can_be_prolonged_and_loaded(tmp_path: Path) -> None:
    run(tmp_path)
    part, error = run(tmp_path, Schedule(80, 5e-2, warm_up=5, average_decay=0.9))
    assert [r["iteration"] for r in read_log(tmp_path) if "error" in r] == [20, 40, 60, 80]
    loaded = Regression()
    assert load_average(loaded, tmp_path)["iteration"] == 80
    assert loaded.evaluate()["error"] == pytest.approx(error, rel=1e-5)
    assert loaded.evaluate() == part.evaluate()


def test_another_seed_does_not_go_on_with_a_run(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(UsageError, match="with seed 0, not of 'regression' with seed 1"):
        run(tmp_path, seed=1)


def test_learning_rate() -> None:
    schedule = Schedule(100, 1.0, warm_up=10, decay_fraction=0.25)
    rates = [schedule.rate(i) for i in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:76] == [1.0] * 67
    assert rates[99] == pytest.approx(0.04)
