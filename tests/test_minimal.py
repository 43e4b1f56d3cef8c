"""What is done without the extras: recordings are analysed, and plans allocated, without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.additivity.conftest import make_recording
from tmpdiff_bench.errors import EXTRAS

# as if no package of an extra were installed, whether or not they are
ABSENT = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {sum(EXTRAS.values(), ())!r}:
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Absent())
"""
FRONT_DOOR = """
import tmpdiff_bench as tb
recording = tb.Recording.open("mine")
print(tb.analyse(recording).save("report").name)
print(len(tb.allocate(recording, speedup=1.5).plan))
print(tb.Experiment("sd3").levels[0])
try:
    tb.record
except ImportError as error:
    print(error)
"""


def without_extras(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", ABSENT + code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a recording in it."""
    made = make_recording()
    made.manifest.update(dataset="simulated", capture="final", seconds=1.0)
    made.manifest["nfe"] |= {"per_step": [1] * made.steps, "spent": 1, "plain_loop": 1}
    sampler = {"class": "Euler"}
    made.manifest["workload"] |= {"arguments": {}, "sampler": sampler, "seeds": [0]}
    made.manifest["workload"]["weights_digest"] = "0" * 64
    made.manifest["environment"] |= {"device": "CPU"}
    sigmas = np.linspace(1, 0.1, made.steps).tolist()
    made.manifest["schedule"] = {"scheduler": "Euler", "sigmas": sigmas, "timesteps": sigmas}
    folder = tmp_path_factory.mktemp("minimal")
    made.save(folder / "mine")
    return folder


def test_the_front_door_opens(folder: Path) -> None:
    done = without_extras(FRONT_DOOR, folder)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "report.html",
        "6",
        "fp32",
        "torch is not installed: pip install 'tmpdiff_bench[models]'",
    ]


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("additivity", ["--recording", "mine", "--out", "again"]),
        ("trajectory", ["info", "mine"]),
        ("deploy", ["allocate", "--recording", "mine", "--speedup", "1.5", "--out", "plan.json"]),
    ],
)
def test_commands_that_read_recordings(folder: Path, command: str, arguments: list[str]) -> None:
    code = f"from tmpdiff_bench.{command}.__main__ import main, run; run(main, {arguments})"
    done = without_extras(code, folder)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("additivity", ["--model", "sd3", "--out", "new"]),
        ("trajectory", ["record", "--model", "sd3", "--out", "new"]),
        ("deploy", ["allocate", "--model", "sd3", "--speedup", "2", "--out", "plan.json"]),
        ("suite", ["--quick", "--out", "new"]),
        ("zoo", ["train", "--model", "vae"]),
    ],
)
def test_what_takes_an_extra_names_it(folder: Path, command: str, arguments: list[str]) -> None:
    code = f"from tmpdiff_bench.{command}.__main__ import main, run; run(main, {arguments})"
    done = without_extras(code, folder)
    assert done.stderr.splitlines() == [
        "error: torch is not installed: pip install 'tmpdiff_bench[models]'"
    ]
    assert done.returncode == 2
    assert not (folder / "new").exists()
