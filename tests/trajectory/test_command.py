"""The command: records, tells, checks and converts; bad input is one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tmpdiff_bench.commands import run
from tmpdiff_bench.trajectory import Recording
from tmpdiff_bench.trajectory.__main__ import main

SMALL = ["--model", "sd3", "--levels", "fp32,w4a4", "--steps", "3", "--num-seeds", "1"]


def _status(argv: list[str]) -> object:
    with pytest.raises(SystemExit) as exit_:
        run(main, argv)
    return exit_.value.code


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    plans = ["--plan", "w4a4*3", "--plan", "fp32 w4a4*2", "--plan", "w4a4*3"]
    options = [*SMALL, "--num-prompts", "3", *plans, "--capture", "trajectory"]
    store = ["--store", str(folder / "store")]
    assert _status(["record", *options, *store, "--out", str(folder / "mine")]) == 0
    return folder


def test_what_was_recorded(made: Path) -> None:
    recording = Recording.open(made / "mine")
    assert [str(plan) for plan in recording.plans] == ["w4a4*3", "fp32 w4a4*2"]
    assert recording.held_out.all()
    paths, reference = recording.single_paths, recording.reference_path
    assert paths is not None
    assert reference is not None
    np.testing.assert_array_equal(reference[-1], recording.reference)
    np.testing.assert_array_equal(paths[:, :, -1], recording.singles)
    for step in range(3):
        assert not paths[0, step, :step].any(), "nothing differs before the low step"
        assert paths[0, step, step:].any(axis=(1, 2)).all()


def test_info_verify_and_export(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _status(["info", str(made / "mine")]) == 0
    told = capsys.readouterr().out
    assert "w4a4 against fp32" in told
    assert "3: 3 prompts" in told
    assert _status(["verify", str(made / "mine"), str(made / "store")]) == 0
    # one chunk: the reference, 3 single and 2 joint runs, the floor, 3 replicates
    assert "10 cells, all whole" in capsys.readouterr().out
    assert _status(["export", str(made / "mine"), "--out", str(tmp_path)]) == 0
    recording = Recording.open(made / "mine")
    np.testing.assert_array_equal(np.load(tmp_path / "singles.npy"), recording.singles)
    assert len(pd.read_csv(tmp_path / "table.csv")) == len(recording.table)


def test_a_store_serves_other_recordings(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same cells: nothing is computed again, and the files are the same."""
    monkeypatch.setattr("tmpdiff_bench.trajectory.recorder.PrefixEngine", None)
    plans = ["--plan", "w4a4*3", "--plan", "fp32 w4a4*2"]
    options = [*SMALL, "--num-prompts", "3", *plans, "--capture", "trajectory"]
    store = ["--store", str(made / "store")]
    assert _status(["record", *options, *store, "--out", str(tmp_path / "again")]) == 0
    for name in ("latents.safetensors", "table.parquet", "pictures.safetensors"):
        again, first = (tmp_path / "again" / name), (made / "mine" / name)
        assert again.read_bytes() == first.read_bytes()


def test_residencies_record_the_same_bytes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", "sd3", "--levels", "fp32,w4a4+lr4,mxfp4", "--steps", "2"]
    options += ["--num-prompts", "5", "--num-seeds", "1"]
    files = set()
    for mode in ("resident", "offload", "derive"):
        out = ["--residency", mode, "--out", str(tmp_path / mode)]
        assert _status(["record", *options, *out]) == 0
        told = capfd.readouterr().err
        assert told.startswith("sd3 (embedded) in fp32: text_encoder 0.7 MB, text_encoder_2")
        assert f"MB ({mode}): reference" in told
        files.add((tmp_path / mode / "latents.safetensors").read_bytes())
    assert len(files) == 1
    manifest = Recording.open(tmp_path / mode).manifest
    assert len(manifest["level_specs"]["w4a4+lr4"]["calibration"]) == 4
    # two evaluations each: calibration by 4 samples, runs of 5 (3 first and 5 second steps), the
    # floor of 5, replicates of 4 (3 and 4)
    assert manifest["nfe"]["spent"] == 2 * (4 * 2 + 5 * 8 + 5 * 2 + 4 * 7)
    assert manifest["nfe"]["computed"] == manifest["nfe"]["spent"]


def test_damage_is_told(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, pattern in (("mine", "latents.safetensors"), ("store", "??/*.safetensors")):
        subprocess.run(["cp", "-r", str(made / folder), str(tmp_path)], check=True)
        path = next((tmp_path / folder).glob(pattern))
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    assert _status(["verify", str(tmp_path / "mine"), str(tmp_path / "store")]) == 2
    told = capsys.readouterr().err
    assert "latents.safetensors is damaged" in told
    assert "it is computed again" in told
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["record", "--model", "sd3"], "the following arguments are required: --out"),
        (["record", *SMALL, "--out", "x", "--plan", "fp32*4"], "has 4 steps, the experiment 3"),
        (["record", *SMALL, "--out", "x", "--plan", "bf16*3"], "uses bf16, which is not among"),
        (["record", *SMALL, "--out", "x", "--plan", "fp32*"], "fp32*"),
        (["record", *SMALL, "--out", "x", "--capture", "all"], "unknown capture 'all'"),
        (["info", "nowhere"], "nowhere holds no recording"),
        (["verify", "nowhere"], "nowhere holds no recording"),
        (["export", "nowhere", "--out", "x"], "nowhere holds no recording"),
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
    assert _status(argv) == 2
    told = capsys.readouterr().err
    assert message in told
    assert len(told.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("height=63", "refuses its arguments: `height` and `width` have to be divisible by"),
        ("guidance_scale=high", "refuses its arguments: '>' not supported"),
        ("guidance=4", "did you mean 'guidance_scale'?"),
    ],
)
def test_arguments_that_a_pipeline_refuses(
    call: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["record", *SMALL, "--num-prompts", "1", "--out", str(tmp_path / "x"), "--call", call]
    assert _status(argv) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_two_processes_and_ctrl_c(tmp_path: Path) -> None:
    """Two at once on one store, one of them interrupted: it goes on, and all ends whole."""
    command = [sys.executable, "-m", "tmpdiff_bench.trajectory", "record", *SMALL]
    command += ["--num-prompts", "16", "--store", str(tmp_path / "store"), "--out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    two = [
        subprocess.Popen(
            [*command, str(tmp_path / name)], env=environment, stderr=subprocess.PIPE, text=True
        )
        for name in ("interrupted", "other")
    ]
    while not list((tmp_path / "store").glob("??/*.safetensors")):
        assert any(process.poll() is None for process in two)
        time.sleep(0.01)
    two[0].send_signal(signal.SIGINT)
    _, told = two[0].communicate()
    assert two[0].returncode in (130, 0)
    if two[0].returncode == 130:
        assert told.splitlines()[-1].startswith("interrupted: finished work is kept")
    two[1].communicate()
    assert two[1].returncode == 0
    subprocess.run([*command, str(tmp_path / "interrupted")], env=environment, check=True)
    assert _status(["verify", *(str(tmp_path / n) for n in ("interrupted", "other", "store"))]) == 0
    files = [(tmp_path / name / "latents.safetensors") for name in ("interrupted", "other")]
    assert files[0].read_bytes() == files[1].read_bytes()
