"""The table of benchmarks over versions."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pandas as pd

from benchmarks.history import COLUMNS, FOLDER, ROOT, extend, numbers


def test_numbers_are_found_with_their_way() -> None:
    data = {"a, s": 1, "words": "x", "no": None, "yes": True, "of": [{"plan": "p*2", "gap": 0.5}]}
    data["range"] = [1.5, [2, 3]]
    assert dict(numbers(data)) == {
        "a, s": 1,
        "of/plan=p*2/gap": 0.5,
        "range/0": 1.5,
        "range/1/0": 2,
        "range/1/1": 3,
    }


def test_a_version_is_added_once_and_others_stay(tmp_path: Path) -> None:
    file, dates = tmp_path / "speed.json", {"speed.json": "2026-01-02"}
    file.write_text(json.dumps({"machine": "m", "torch": "2", "fast": 3.0}))
    extend(tmp_path, "0.1.0", dates)
    file.write_text(json.dumps({"machine": "m", "torch": "2", "fast": 4.0}))
    extend(tmp_path, "0.2.0", dates)
    found = extend(tmp_path, "0.2.0", dates)
    assert found["value"].tolist() == [3.0, 4.0]
    assert found["version"].tolist() == ["0.1.0", "0.2.0"]
    assert pd.read_parquet(tmp_path / "history.parquet").equals(found)
    assert set(found["commit_date"]) == {"2026-01-02"}


def test_the_table_that_is_here_has_every_benchmark() -> None:
    """Its last version has the numbers of the JSON files, or the version has not been added yet."""
    history = pd.read_parquet(FOLDER / "history.parquet")
    assert history.columns.tolist() == COLUMNS
    assert not history.duplicated(["version", "benchmark", "key"]).any()
    assert set(history["benchmark"]) >= {path.stem for path in FOLDER.glob("*.json")}
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    present = history[history["version"] == version]
    for name, group in present.groupby("benchmark"):
        written = dict(numbers(json.loads((FOLDER / f"{name}.json").read_text())))
        pd.testing.assert_series_equal(
            group.set_index("key")["value"], pd.Series(written), check_names=False
        )
