"""Real faults while recording: SIGKILL at random moments, and a full disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from tests.conftest import SmallDisk
from tests.toy import LEVELS, toy_banks
from tests.trajectory.test_recorder import contents, make
from tmpdiff_bench.store import CellStore
from tmpdiff_bench.trajectory import Recording, recorder


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """So small a model only waits for its other threads, for long where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


LITTLE: dict[str, Any] = {"prompts": {"p0": "a red circle"}, "max_batch": 1}
# Forks from a process that has imported what is slow to, and has run nothing: threads, such as
# those of pyarrow, would not survive a fork, and what waits for them would wait for ever.
KILLER = """
import json, os, random, signal, sys, time
from pathlib import Path
import pyarrow.parquet
import torch
import tqdm
torch.set_num_threads(1)
tqdm.tqdm.monitor_interval = 0
from tests.toy import LEVELS, toy_banks
from tests.trajectory.test_faults import LITTLE
from tests.trajectory.test_recorder import make
from tmpdiff_bench.trajectory import recorder
recorder.level_banks = toy_banks(LEVELS)
root, wanted = Path(sys.argv[1]), int(sys.argv[2])
rng = random.Random(0)
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # progress bars

def fork(folder, seconds=None):
    child = os.fork()
    if child == 0:
        make(folder, **LITTLE)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])

started = time.perf_counter()
fork(root / "whole")
longest = time.perf_counter() - started
kills, rounds = 0, 0
while kills < wanted:
    folder = root / f"round-{rounds}"
    while not (folder / "manifest.json").exists():
        before = len(list(folder.rglob("*.safetensors")))
        killed = fork(folder, rng.uniform(0, longest))
        kills += killed
        if not killed:  # the machine is faster now, or slower
            longest *= 0.8
        elif len(list(folder.rglob("*.safetensors"))) <= before:
            longest *= 1.1
    rounds += 1
print(json.dumps({"kills": kills, "rounds": rounds}))
"""


@pytest.fixture
def in_memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in main memory, where there is one: every cell is synced, and disks may be slow."""
    shared = Path("/dev/shm")
    with TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else tmp_path) as folder:
        yield Path(folder)


def test_killed_at_fifty_random_moments(in_memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each round is killed until it ends; all end with the bytes of an undisturbed run."""
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(in_memory), "50"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": ".", "OMP_NUM_THREADS": "1"},
    )
    told = json.loads(done.stdout)
    assert told["kills"] >= 50
    expected = contents(in_memory / "whole")
    monkeypatch.setattr(recorder, "level_banks", toy_banks(LEVELS))
    for i in range(told["rounds"]):
        folder = in_memory / f"round-{i}"
        make(folder, **LITTLE)  # clears what a kill after the manifest left
        assert contents(folder) == expected
        Recording.open(folder)


def test_a_full_disk_loses_nothing(
    small_disk: SmallDisk, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = small_disk.folder
    monkeypatch.setattr(recorder, "level_banks", toy_banks(LEVELS))
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    make(elsewhere, max_batch=1)
    with pytest.raises(OSError, match="No space left"):
        make(folder / "recording", max_batch=1)
    kept = len(list((folder / "recording" / "cells").glob("??/*.safetensors")))
    assert kept >= 1
    small_disk.enlarge()
    put, stored = CellStore.put, list[str]()

    def counting(store: CellStore, key: str, arrays) -> None:
        stored.append(key)
        put(store, key, arrays)

    monkeypatch.setattr(CellStore, "put", counting)
    make(folder / "recording", max_batch=1)
    # what was stored is not computed again: 6 samples of 12 cells, 8 more where replicated
    assert len(stored) == 6 * (1 + 8 + 2 + 1) + 3 * 8 - kept
    assert contents(folder / "recording") == contents(elsewhere)
