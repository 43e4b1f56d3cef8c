"""The orchestration: what it runs, gathers and publishes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from analysis.provenance import ROOT
from analysis.registry import NAMES, SCRIPTS
from analysis.reproduce import FULL, QUICK, SHOWN_BY_README, Job, main, publish, run_jobs
from tests.additivity.conftest import make_recording
from tmpdiff_bench import analyse
from tmpdiff_bench.errors import UsageError


def test_collect_gathers_what_is_there_and_names_the_gaps(
    made_up_reports: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made_up_reports / "additivity", tmp_path / "additivity")
    # levels would run the model
    kept = [script for script in SCRIPTS if script.name in ("hypotheses", "regret")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("analysis.reproduce.SCRIPTS", kept)
        main(["--collect", "--quick", "--build", str(tmp_path)])
    said = capsys.readouterr().out
    assert (tmp_path / "tables" / "hypotheses.csv").is_file()
    assert (tmp_path / "index.html").is_file()
    assert "not run: suite-v1/manifest.json" in said
    assert "regret: python -m analysis.regret: no suite-v1/manifest.json" in said
    assert "tables/ranks.csv" in said
    assert "not run: additivity" not in said


PICTURES = "suite-v1/pictures.safetensors"


def test_publishing_replaces_what_was_generated_only(tmp_path: Path) -> None:
    built, reports = tmp_path / "built", tmp_path / "reports"
    for name in (
        "tables/new.csv",
        "additivity/sd3/recording/x",
        "suite-v1/cells/y",
        ".old.tmp",
        PICTURES,
    ):
        (built / name).parent.mkdir(parents=True, exist_ok=True)
        (built / name).write_text("new")
    for name in ("README.md", "benchmarks/engine.json", "tables/old.csv", "old.png"):
        (reports / name).parent.mkdir(parents=True, exist_ok=True)
        (reports / name).write_text("old")
    publish(built, reports)
    files = {path.relative_to(reports).as_posix() for path in reports.rglob("*") if path.is_file()}
    assert files == {"README.md", "benchmarks/engine.json", "tables/new.csv"}


def test_published_reports_have_each_figure_once(tmp_path: Path) -> None:
    sd3 = tmp_path / "built" / "additivity" / "sd3"
    page = analyse(make_recording()).save(sd3)
    (tmp_path / "reports").mkdir()
    publish(tmp_path / "built", tmp_path / "reports")
    published = tmp_path / "reports" / "additivity" / "sd3"
    pictures = {path.name for path in published.glob("figures/*")}
    svg = {path.name for path in sd3.glob("figures/*.svg")}
    assert pictures == {*svg, "predicted-against-measured.png"}
    assert f"reports/{SHOWN_BY_README}" in (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r'<img src="([^"]+)"', (published / "report.html").read_text())
    assert {name.removeprefix("figures/") for name in shown} == svg
    assert re.findall(r'<img src="([^"]{40})', page.read_text())  # inlined where it was made


def test_jobs_that_fail_are_named_with_what_they_said_and_others_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [
        Job("json.tool {out}/nothing", "one/x"),
        Job("json.tool --help", "two/x"),
        Job("json.tool --wrong", "three/x"),
    ]
    with pytest.raises(UsageError) as caught:
        run_jobs(jobs, tmp_path)
    said = str(caught.value)
    assert re.search(r"nothing` ended with status \d: .*No such file", said)
    assert re.search(r"--wrong` ended with status 2: .*unrecognized", said)
    assert "--help" not in said
    assert capsys.readouterr().out.count("python -m json.tool") == 3
    assert "usage" in (tmp_path / "logs" / "two.log").read_text()


def test_an_interrupt_starts_no_further_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.cpu_count", lambda: 1)
    monkeypatch.setattr("analysis.reproduce.time.sleep", interrupted)
    jobs = [Job("json.tool --help", f"job-{index}/x") for index in range(4)]
    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs, tmp_path)
    assert len(list((tmp_path / "logs").iterdir())) == 1


def test_folders_may_have_spaces(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    (folder / "in.json").write_text("{}")
    run_jobs([Job("json.tool {out}/in.json {out}/out.json", "one/x")], folder)
    assert (folder / "out.json").is_file()


def test_all_that_scripts_read_is_made_by_a_job() -> None:
    for stages in (FULL, QUICK):
        made = {job.made.partition("/")[0] for jobs in stages for job in jobs}
        for script in SCRIPTS:
            assert {pattern.partition("/")[0] for pattern in script.inputs} <= {"data", *made}
    assert len(NAMES) == len(SCRIPTS)


def test_ci_runs_the_small_profile_too() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert lines[-2:] == [
        ".ci/venv/bin/nox -s tests",
        ".ci/venv/bin/nox -s reproduce -- --quick",
    ]


def test_sessions_are_thin() -> None:
    text = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    assert '"analysis.reproduce"' in text
    assert '"analysis.golden", "bless"' in text
