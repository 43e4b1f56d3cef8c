"""Cells: what was put is got, damage is noticed wherever it strikes, and a full disk harms none."""

from __future__ import annotations

import errno
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from tests.conftest import SmallDisk
from tmpdiff_bench.store import CellStore, digest

KEY = digest({"plan": "fp32*20"})


@given(
    arrays=st.dictionaries(
        st.text(st.characters(codec="ascii", categories=["L"]), min_size=1, max_size=5),
        arrays_of.arrays(
            st.sampled_from([np.float32, np.float64, np.uint8, np.int64]),
            arrays_of.array_shapes(max_dims=3, max_side=4),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_what_was_put_is_got(tmp_path_factory: pytest.TempPathFactory, arrays) -> None:
    store = CellStore(tmp_path_factory.mktemp("store"))
    store.put(KEY, arrays)
    found = store.get(KEY)
    assert found is not None
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    assert list(store.keys()) == [KEY]
    assert store.damaged() == []


def test_same_arrays_same_bytes(tmp_path: Path) -> None:
    a, b = np.arange(3.0), np.arange(4)
    CellStore(tmp_path / "1").put(KEY, {"a": a, "b": b})
    CellStore(tmp_path / "2").put(KEY, {"b": b, "a": a})
    one, two = (next((tmp_path / name).rglob("*.safetensors")) for name in "12")
    assert one.read_bytes() == two.read_bytes()


def test_absent(tmp_path: Path) -> None:
    store = CellStore(tmp_path / "nowhere")
    assert store.get(KEY) is None
    assert list(store.keys()) == []
    assert not (tmp_path / "nowhere").exists()


def test_every_flipped_bit_and_every_truncation_is_noticed(tmp_path: Path) -> None:
    store = CellStore(tmp_path)
    store.put(KEY, {"a": np.arange(5, dtype=np.float32), "b": np.array([True, False])})
    path = next(tmp_path.rglob("*.safetensors"))
    good = path.read_bytes()
    kept = store.get(KEY)
    assert kept is not None
    for position in range(8 * len(good)):
        bad = bytearray(good)
        bad[position // 8] ^= 1 << position % 8
        path.write_bytes(bytes(bad))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = store.get(KEY)
        # a flipped bit of the header's padding or of a name's place changes no number
        same = found is not None and all(
            name in found and np.array_equal(found[name], array) for name, array in kept.items()
        )
        assert found is None or same, position
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.warns(UserWarning, match="is damaged: it is computed again"):
            assert store.get(KEY) is None
        assert store.damaged() == [path]
    path.write_bytes(good)
    assert store.damaged() == []


WRITER = """
import sys, numpy as np
from pathlib import Path
from tmpdiff_bench.store import CellStore, digest
store = CellStore(Path(sys.argv[1]))
print("ready", flush=True)
for i in range(100_000):
    store.put(digest({"i": i % 50}), {"a": np.full(2000, i % 50)})
"""


def test_two_writers_that_are_killed_leave_whole_cells(tmp_path: Path) -> None:
    rng = random.Random(0)
    store = CellStore(tmp_path)
    for _ in range(3):
        command = [sys.executable, "-c", WRITER, str(tmp_path)]
        writers = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
        for writer in writers:
            assert writer.stdout is not None
            writer.stdout.readline()
        time.sleep(rng.uniform(0.05, 0.3))
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            writer.communicate()
        assert store.damaged() == []
        for i in range(50):
            if (found := store.get(digest({"i": i}))) is not None:
                np.testing.assert_array_equal(found["a"], np.full(2000, i))
    assert len(list(store.keys())) == 50


def _put(store: CellStore, i: int) -> OSError | None:
    try:
        store.put(digest({"i": i}), {"a": np.full(500, i)})
    except OSError as error:
        return error
    return None


def test_a_full_disk_keeps_what_is_there(small_disk: SmallDisk) -> None:
    store = CellStore(small_disk.folder)
    stored = 0
    while (error := _put(store, stored)) is None:
        stored += 1
    assert error.errno == errno.ENOSPC
    assert 3 <= stored < 100
    assert store.damaged() == []
    for i in range(stored):
        found = store.get(digest({"i": i}))
        assert found is not None
        np.testing.assert_array_equal(found["a"], np.full(500, i))
    assert not list(small_disk.folder.rglob("*.tmp"))
