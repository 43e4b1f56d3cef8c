"""The command: its arguments, what it hands on, and what it prints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tmpdiff_bench.additivity.__main__ import main
from tmpdiff_bench.commands import run
from tmpdiff_bench.experiment import Experiment
from tmpdiff_bench.trajectory import Recording


def _status(argv: list[str]) -> object:
    with pytest.raises(SystemExit) as exit_:
        run(main, argv)
    return exit_.value.code


def test_existing_recording_is_analysed(
    recording: Recording, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording.save(tmp_path / "recording")
    out = tmp_path / "out"
    arguments = ["--recording", str(tmp_path / "recording"), "--out", str(out), "--margin", "0.2"]
    assert _status(arguments) == 0
    told = capsys.readouterr().out
    assert f"Report: {out / 'report.html'}" in told
    assert len(told.splitlines()) <= 24
    assert (out / "report.html").exists()
    first = (out / "summary.json").read_bytes()
    assert _status(arguments) == 0
    assert (out / "summary.json").read_bytes() == first


def test_model_is_recorded_with_the_options_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def record(asked_for: Experiment, out: Path) -> Recording:
        asked.extend((asked_for, out))
        raise KeyboardInterrupt

    monkeypatch.setattr("tmpdiff_bench.trajectory.record", record)
    monkeypatch.chdir(tmp_path)
    arguments = ["--model", "sd3", "--levels", "fp32, w8a8,w4a4", "--call", "guidance_scale=2"]
    assert _status([*arguments, "--seed", "3", "--num-seeds", "1", "--state-memory", "64"]) == 130
    wanted = Experiment(
        "sd3",
        levels=("fp32", "w8a8", "w4a4"),
        call={"guidance_scale": 2},
        seed=3,
        num_seeds=1,
        state_memory=2**26,
    )
    assert asked == [wanted, Path("additivity-sd3/recording")]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "name a model by --model, or weights by --weights"),
        (["--model", "sd3", "--steps", "0"], "--steps: '0' is not a whole number of at least 1"),
        (["--model", "sd3", "--steps", "1"], "leave nothing to add up"),
        (["--model", "sd3", "--call", "guidance_scale=NaN"], "NaN is no finite number"),
        (["--model", "sd3", "--call", "guidance"], "'guidance' is not NAME=VALUE, such as"),
        (["--model", "sd3", "--call", "guidance=1"], "did you mean 'guidance_scale'"),
        (["--model", "sd3", "--call", "generator=1"], "--seed sets the noise"),
        (["--model", "sd3", "--seed", "-1"], "--seed"),
        (["--model", "sd3", "--margin", "0"], "--margin: '0' is not above 0"),
        (["--model", "sd3", "--levels", "fp32"], "--levels: 'fp32' is not the reference and"),
        (["--model", "sd3", "--levels", "fp32,,w4a4"], "--levels"),
        (["--model", "sd3", "--levels", "fp32,w4a5"], "unknown level 'w4a5': did you mean 'w4a"),
        (["--model", "sd3", "--metrics", "psn"], "unknown metric 'psn': did you mean 'psnr'"),
        (["--model", "sd3", "--metrics", "fid"], "fid compares sets of images: a recording holds"),
        (["--model", "sd3", "--metrics", "ssim,"], "'ssim,' is not a list of names"),
        (["--model", "sd3", "--dtype", "bf61"], "unknown dtype 'bf61': did you mean 'bf16'"),
        (["--model", "sd3", "--dtype", "bf16", "--levels", "fp32,w4a4"], "name bf16 in its place"),
        (["--model", "sd3", "--device", "cuda:9"], "device 'cuda:9' is not available here"),
        (["--model", "sd3", "--vae-tile", "62"], "--vae-tile is 62: this VAE takes multiples of 4"),
        (["--model", "all", "--weights", "mine"], "--weights is of one model: it has no meaning"),
        (["--model", "all", "--levels", "fp32,w4a5"], "unknown level 'w4a5'"),
        (["--model", "sd33"], "unknown model 'sd33': did you mean 'sd3'"),
        (["--model", "sd3", "--step", "4"], "unrecognized arguments: --step 4"),
        (["--recording", "nowhere"], "nowhere holds no recording"),
        (["--recording", "nowhere", "--steps", "4"], "--steps has no effect with --recording"),
        (
            ["--recording", "nowhere", "--out", "."],
            "holds 'mine.txt', which no report of ours wrote",
        ),
    ],
)
def test_bad_input_is_one_line(
    argv: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").touch()
    assert _status(argv) == 2
    # what weights take is said before they are loaded, and only then is known what a call takes
    told = [line for line in capsys.readouterr().err.splitlines() if " in fp32: " not in line]
    assert len(told) == 1
    assert message in told[0]
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_help_shows_examples_and_defaults_without_slow_imports() -> None:
    code = (
        "import sys, runpy\n"
        "sys.argv = ['additivity', '--help']\n"
        "try:\n    runpy.run_module('tmpdiff_bench.additivity', run_name='__main__')\n"
        "finally:\n    print(sorted({'torch', 'matplotlib'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "python -m tmpdiff_bench.additivity --model sd3" in done.stdout
    assert "(default: fp32,w8a8,w4a8,w4a4)" in " ".join(done.stdout.split())
    assert done.stdout.splitlines()[-1] == "[]"
