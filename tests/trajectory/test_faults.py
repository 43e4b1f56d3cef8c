"""Real faults while recording: SIGKILL at random moments, and a full disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
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
# Forks from a process that has imported everything, so that a run takes milliseconds; one thread,
# as threads do not survive a fork.
KILLER = """
import gc, json, os, random, signal, sys, time
from pathlib import Path
import torch
import tqdm
torch.set_num_threads(1)
tqdm.tqdm.monitor_interval = 0  # its thread does not survive a fork either
from tests.toy import LEVELS, toy_banks
from tests.trajectory.test_faults import LITTLE
from tests.trajectory.test_recorder import make
from tmpdiff_bench.trajectory import recorder
recorder.level_banks = toy_banks(LEVELS)
root, wanted = Path(sys.argv[1]), int(sys.argv[2])
rng = random.Random(0)
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # progress bars
make(root / "warm-up", **LITTLE)
taken = []
for name in ("a", "b", "c"):
    started = time.perf_counter()
    make(root / name, **LITTLE)
    taken.append(time.perf_counter() - started)
whole = min(taken)  # the machine may have stood still in one
gc.freeze()  # a collection would copy the parent's memory, object by object
kills, rounds = 0, 0
while kills < wanted:
    folder = root / f"round-{rounds}"
    while not (folder / "manifest.json").exists():
        child = os.fork()
        if child == 0:
            make(folder, **LITTLE)
            os._exit(0)
        time.sleep(rng.uniform(0, 1.2 * whole))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        kills += os.WIFSIGNALED(status)
    rounds += 1
print(json.dumps({"kills": kills, "rounds": rounds}))
"""


@pytest.mark.timeout(900)  # forks of a large process: minutes where memory is slow to get
def test_killed_at_fifty_random_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each round is killed until it ends; all end with the bytes of an undisturbed run."""
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path), "50"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": ".", "OMP_NUM_THREADS": "1"},
    )
    told = json.loads(done.stdout)
    assert told["kills"] >= 50
    expected = contents(tmp_path / "warm-up")
    monkeypatch.setattr(recorder, "level_banks", toy_banks(LEVELS))
    for i in range(told["rounds"]):
        folder = tmp_path / f"round-{i}"
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
