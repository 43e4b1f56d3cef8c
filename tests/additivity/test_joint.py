"""Several models in one report: verdicts adjusted over their union, one folder, one screen."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.additivity.conftest import make_recording
from tests.additivity.test_report import Page
from tmpdiff_bench.additivity import AdditivityReport, experiment
from tmpdiff_bench.additivity.__main__ import main
from tmpdiff_bench.additivity.analysis import JointReport, analyse, join
from tmpdiff_bench.additivity.experiment import find_recordings
from tmpdiff_bench.additivity.inference import decide
from tmpdiff_bench.additivity.joint_report import (
    check_joint_folder,
    joint_text,
    ratios,
    write_joint,
)
from tmpdiff_bench.commands import run
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.experiment import Experiment
from tmpdiff_bench.report.style import MAIN_METRIC, MAIN_PREDICTORS, level_label
from tmpdiff_bench.statistics import holm
from tmpdiff_bench.trajectory import Recording


def of_model(name: str, made: Recording) -> Recording:
    """The same numbers under another name."""
    workload = {**made.manifest["workload"], "model": name}
    title = f"{name} (embedded, 1.0 M)"
    return replace(made, manifest={**made.manifest, "workload": workload, "title": title})


@pytest.fixture(scope="module")
def reports() -> dict[str, AdditivityReport]:
    small: dict[str, Any] = {"steps": 4, "prompts": 4, "plans": 6}
    return {
        name: analyse(of_model(name, make_recording(**{**small, "plans": plans})))
        for name, plans in (("sd3", 6), ("flux", 7))
    }


@pytest.fixture(scope="module")
def joint(reports: dict[str, AdditivityReport]) -> JointReport:
    return join(reports, {"sdxl": "its embedded weights are not in this installation"})


def test_p_values_are_adjusted_over_the_union(
    reports: dict[str, AdditivityReport], joint: JointReport
) -> None:
    """By hand: all metrics of all models, for each level and predictor."""
    before = [score for report in reports.values() for score in report.scores]
    after = [score for report in joint.reports.values() for score in report.scores]
    families = {(score.level, score.predictor) for score in before}
    for family in families:
        rows = [i for i, s in enumerate(before) if (s.level, s.predictor) == family and s.test]
        tests = [test for i in rows if (test := before[i].test)]
        inside = holm([test.equivalence_p for test in tests])
        outside = holm([test.outside_p for test in tests])
        for row, test, p_inside, p_outside in zip(rows, tests, inside, outside, strict=True):
            found = after[row]
            assert found.equivalence_p_holm == p_inside >= before[row].equivalence_p_holm
            assert found.outside_p_holm == p_outside >= before[row].outside_p_holm
            assert found.verdict == decide(p_inside, p_outside, test.r2_plans, 0.05)
    assert len(before) == len(after)


def test_more_models_never_decide_more(
    reports: dict[str, AdditivityReport], joint: JointReport
) -> None:
    for name, report in reports.items():
        for alone, together in zip(report.scores, joint.reports[name].scores, strict=True):
            assert together.verdict in (alone.verdict, "undecided")


def test_one_model_is_adjusted_as_before(reports: dict[str, AdditivityReport]) -> None:
    alone = join({"sd3": reports["sd3"]}).reports["sd3"]
    assert alone.scores == reports["sd3"].scores


def test_margins_may_not_differ(reports: dict[str, AdditivityReport]) -> None:
    other = replace(reports["flux"], margin=0.2)
    with pytest.raises(UsageError, match="of one margin and one alpha"):
        join({"sd3": reports["sd3"], "flux": other})


def test_files_of_the_joint_report(joint: JointReport, tmp_path: Path) -> None:
    page = write_joint(joint, tmp_path / "all")
    content = page.read_text(encoding="utf-8")
    text = Page(content).text
    assert "over all metrics of all models together" in " ".join(text.split())
    assert "sdxl" in text
    assert "sd3 (embedded, 1.0 M)" in text
    table = pd.read_csv(tmp_path / "all" / "tables" / "verdicts.csv")
    assert len(table) == sum(len(report.scores) for report in joint.reports.values())
    assert list(table.columns[:2]) == ["model", "level"]
    drawing = ratios(joint)
    assert drawing is not None
    assert f'alt="{drawing.alt}"' in content
    assert (tmp_path / "all" / "figures" / "ratios.png").is_file()
    overview = (tmp_path / "all" / "tables" / "models.md").read_text()
    assert overview.count("flux (embedded, 1.0 M)") == 3  # two levels and the mixed plans
    summary = json.loads(
        (tmp_path / "all" / "summary.json").read_text(), parse_constant=pytest.fail
    )
    assert summary["left_out"] == {"sdxl": "its embedded weights are not in this installation"}
    assert {row["model"] for row in summary["scores"]} == {"sd3", "flux"}
    first = {p: p.read_bytes() for p in (tmp_path / "all").rglob("*") if p.is_file()}
    write_joint(joint, tmp_path / "all")
    assert {p: p.read_bytes() for p in first} == first


def test_the_figure_has_every_interval_once(joint: JointReport) -> None:
    drawing = ratios(joint)
    assert drawing is not None
    drawn = []
    for ax in drawing.figure.axes:
        for line in ax.lines:
            xs, ys = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
            if len(xs) == 2 and ys[0] == ys[1]:  # neither an estimate's dot nor the line at 1
                drawn.append((ax.get_title(), round(float(ys[0])), xs[0], xs[1]))
    names = list(joint.reports)
    expected = [
        (level_label(score.level), names.index(name), score.test.ratio.low, score.test.ratio.high)
        for name, report in joint.reports.items()
        for score in report.scores
        if score.metric == MAIN_METRIC and score.predictor in MAIN_PREDICTORS and score.test
    ]
    assert sorted(drawn) == sorted(expected)
    assert len(expected) > 6


def test_the_summary_fits_a_screen(joint: JointReport) -> None:
    lines = joint_text(joint, Path("out/report.html")).splitlines()
    many = {f"model{i}": joint.reports["sd3"] for i in range(12)}
    for text in (lines, joint_text(replace(joint, reports=many), Path("x")).splitlines()):
        assert len(text) <= 24
        assert all(len(line) <= 100 and line.isascii() for line in text)
    assert sum(line.startswith(("sd3", "flux")) for line in lines) == 6
    assert lines[-2].startswith("sdxl: left out")


def test_foreign_folders_are_refused(joint: JointReport, tmp_path: Path) -> None:
    (tmp_path / "sd3").mkdir()
    check_joint_folder(tmp_path, ["sd3"])
    (tmp_path / "sd3" / "mine.txt").touch()
    with pytest.raises(UsageError, match=r"holds 'mine\.txt', which no report of ours wrote"):
        write_joint(joint, tmp_path)
    (tmp_path / "sd3" / "mine.txt").rename(tmp_path / "mine.txt")
    with pytest.raises(UsageError, match=r"holds 'mine\.txt'"):
        check_joint_folder(tmp_path, [])


def test_recordings_are_found_in_reports(tmp_path: Path) -> None:
    made = [tmp_path / "all" / name / "recording" for name in ("flux", "sd3")]
    for folder in made:
        folder.mkdir(parents=True)
        (folder / "manifest.json").touch()
    assert find_recordings([tmp_path / "all"]) == made
    assert find_recordings([tmp_path / "all" / "sd3", made[0]]) == [made[1], made[0]]
    assert find_recordings([tmp_path / "nowhere"]) == [tmp_path / "nowhere"]


def _status(argv: list[str]) -> object:
    with pytest.raises(SystemExit) as exit_:
        run(main, argv)
    return exit_.value.code


def test_all_models_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Recording is replaced: interrupted at the second model, then whole, then analysed again."""
    made = make_recording(steps=4, prompts=3, plans=4)
    state: dict[str, Any] = {"interrupt": True, "asked": []}

    def record(asked: Experiment, out: Path) -> Recording:
        assert asked.joint_plans == 12
        state["asked"].append((asked.model, asked.steps))
        if asked.model == "flux" and state["interrupt"]:
            raise KeyboardInterrupt
        return of_model(str(asked.model), made).save(out)

    monkeypatch.setattr("tmpdiff_bench.trajectory.record", record)
    monkeypatch.setattr("tmpdiff_bench.pipelines.embedded_models", lambda: ("sd3", "flux"))
    monkeypatch.chdir(tmp_path)
    arguments = ["--model", "all", "--steps", "4", "--out", "all"]
    assert _status(arguments) == 130
    assert (tmp_path / "all" / "sd3" / "report.html").exists()
    assert not (tmp_path / "all" / "report.html").exists()
    told = capsys.readouterr().err.splitlines()
    assert "sdxl: left out, its embedded weights are not in this installation" in told
    assert "flux: 2 of 2 models" in told
    state["interrupt"] = False
    assert _status(arguments) == 0
    assert state["asked"][:2] == [("sd3", 4), ("flux", 4)]
    assert len(capsys.readouterr().out.splitlines()) <= 24
    assert (tmp_path / "all" / "flux" / "report.html").exists()
    assert _status(["--recording", "all", "--metrics", "latent_rmse", "--out", "again"]) == 0
    table = pd.read_csv(tmp_path / "again" / "tables" / "verdicts.csv")
    assert set(table["model"]) == {"sd3", "flux"}
    assert set(table["metric"]) == {"latent_rmse"}
    shutil.copytree(tmp_path / "all" / "sd3", tmp_path / "twice" / "sd3")
    assert _status(["--recording", "all/sd3", "twice/sd3", "--out", "two"]) == 0
    assert {p.name for p in (tmp_path / "two").iterdir() if p.is_dir()} == {
        *("sd3", "sd3-2", "tables", "figures")
    }


def test_no_model_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tmpdiff_bench.pipelines.embedded_models", tuple)
    with pytest.raises(UsageError, match="no embedded weights are in this installation"):
        experiment.every_model(Experiment("all"), tmp_path / "out", margin=0.1)
    assert not list(tmp_path.iterdir())
