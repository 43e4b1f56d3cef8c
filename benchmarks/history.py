"""Results of the benchmarks over versions, in one table: reports/benchmarks/history.parquet.

`python -m benchmarks.history` adds the present JSON files as rows of the present version, in place
of rows that it has of that version already.
"""

from __future__ import annotations

import json
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "reports" / "benchmarks"
COLUMNS = ["version", "commit_date", "benchmark", "machine", "torch", "key", "value"]
NAMES = ("allocator", "plan", "bound, runs")  # what tells entries of a list apart


def numbers(data: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a JSON value with the way to it, as in `memory/bound, runs=2/s`."""
    if isinstance(data, bool) or data is None or isinstance(data, str):
        return
    if isinstance(data, dict):
        for name, value in data.items():
            yield from numbers(value, f"{key}/{name}" if key else name)
    elif isinstance(data, list):
        for i, value in enumerate(data):
            named = [n for n in NAMES if isinstance(value, dict) and n in value]
            steps = f", steps={value['steps']}" if named and "steps" in value else ""
            place = f"{named[0]}={value[named[0]]}{steps}" if named else str(i)
            yield from numbers(value, f"{key}/{place}")
    else:
        yield key, float(data)


def rows(path: Path, version: str, commit_date: str) -> pd.DataFrame:
    """The numbers of one file; `torch` is empty for benchmarks without it."""
    data = json.loads(path.read_text())
    made = pd.DataFrame(list(numbers(data)), columns=["key", "value"])
    about = {"version": version, "commit_date": commit_date, "benchmark": path.stem}
    about |= {name: data.get(name, "") for name in ("machine", "torch")}
    return made.assign(**about)[COLUMNS]


def extend(folder: Path, version: str, dates: dict[str, str]) -> pd.DataFrame:
    """Write the table of `folder` with its JSON files as rows of `version`; other versions stay.

    `dates`: by file name, when it was committed.
    """
    table = folder / "history.parquet"
    frames = [rows(path, version, dates[path.name]) for path in sorted(folder.glob("*.json"))]
    if table.exists():
        before = pd.read_parquet(table)
        frames.insert(0, before[before["version"] != version])
    history = pd.concat(frames, ignore_index=True)
    history.to_parquet(table, index=False)
    return history


def main() -> None:
    """Add what is there."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    dates = {}
    for path in FOLDER.glob("*.json"):
        command = ["git", "log", "-1", "--format=%cs", "--", str(path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        dates[path.name] = done.stdout.strip()
    history = extend(FOLDER, version, dates)
    print(f"{len(history)} rows of versions {', '.join(history['version'].unique())}")


if __name__ == "__main__":
    main()
