"""The experiment on the embedded model, made small: same bytes twice, and bad values named."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import predictors as predictors_table
from tmpdiff_bench.additivity import analyse
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.experiment import Experiment
from tmpdiff_bench.trajectory import Recording, record

SETTINGS: dict[str, Any] = {
    "levels": ("fp32", "w8a8", "w4a4"),
    "steps": 4,
    "num_prompts": 3,
    "num_seeds": 1,
    "joint_plans": 6,
}


def make(folder: Path, **changes: Any) -> Recording:
    return record(Experiment("sd3", **{**SETTINGS, **changes}), folder)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return make(tmp_path_factory.mktemp("recording"))


def test_two_runs_have_the_same_bytes(recording: Recording, tmp_path: Path) -> None:
    make(tmp_path)
    for name, digest in recording.manifest["files"].items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest


def test_low_precision_is_what_moves_the_result(recording: Recording) -> None:
    """Errors stand clear of the floor, and 4 bit clear of 8 bit, at every step."""
    rms = np.sqrt((recording.singles.astype(np.float64) ** 2).mean(axis=(2, 3)))
    w8a8, w4a4 = rms
    assert (w8a8 > 10 * recording.floor.mean()).all()
    assert (w4a4 > 3 * w8a8).all()


def test_the_report_of_a_small_experiment(recording: Recording) -> None:
    report = analyse(recording)
    frame = report.scores_frame()
    gram = frame[(frame.predictor == "gram") & (frame.metric == "latent_rmse")]
    assert set(gram.level) >= {"w8a8", "w4a4"}
    assert np.isfinite(gram.r2_identity).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": ("fp32",)}, "at least one low level"),
        ({"levels": ("fp32", "w4a44")}, "did you mean 'w4a4'"),
        ({"levels": ("fp32", "w4a4", "w4a4")}, "named twice"),
        ({"steps": 0}, "--steps is 0"),
        ({"call": {"guidance_scale": float("nan")}}, "--call guidance_scale is nan"),
        ({"num_prompts": 0}, "--num-prompts is 0"),
        ({"num_prompts": 4000}, "4000 prompts asked for"),
        ({"num_seeds": 0}, "--num-seeds is 0"),
        ({"device": "cuda:99"}, "not available here"),
    ],
)
def test_bad_values(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(tmp_path / "new", **change)
    assert not (tmp_path / "new").exists()


def test_the_table_of_predictors(
    recording: Recording, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = analyse(recording)
    (tmp_path / "additivity" / "sd3").mkdir(parents=True)
    (tmp_path / "additivity" / "sd3" / "summary.json").write_text(report.to_json())
    predictors_table.SCRIPT.main(["--reports", str(tmp_path)])
    assert "root sum squares" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "tables" / "predictors.csv")
    table = table.set_index(["metric", "predictor", "over"])
    scores = report.scores_frame().set_index(["level", "metric", "predictor"])
    for level in ("w8a8", "w4a4"):
        for over, column in (("plans", "r2_plans"), ("samples", "r2_identity")):
            expected = scores.loc[(level, "latent_rmse", "gram"), column]
            assert table.loc[("latent_rmse", "gram", over), level] == pytest.approx(expected)
    for suffix in ("md", "tex"):
        assert "power" in (tmp_path / "tables" / f"predictors.{suffix}").read_text()
    with pytest.raises(UsageError, match="no additivity/"):
        predictors_table.SCRIPT.main(["--reports", str(tmp_path / "elsewhere")])
