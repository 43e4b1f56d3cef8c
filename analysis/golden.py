"""Whether tables are what they were: `data/golden/` against a reports folder, cell by cell.

    python -m analysis.golden check --reports FOLDER [--quick]
    python -m analysis.golden bless --reports FOLDER [--quick] --reason TEXT

Rows, and the columns that name them, are exact everywhere. Other cells depend on the machine:

- On a machine of the goldens' kind (`machine.json`: processor, instruction set, threads, torch, a
  digest of what its kernels make of fixed inputs) the same code gives the same bits. Plans,
  verdicts and counts are exact; numbers are held to ten times the numerical floor.
- On another kind, kernels differ in the last bits. Rounding activations is chaotic in its input, so
  a joint error becomes another draw of the same noise, and near-ties between plans are decided
  otherwise. There a number is held to the tolerance that its table declares, with its reason; what
  declares none (chosen plans, verdicts, counts of searches) is counted as not compared. Tables
  that no network enters are exact there too.

Seconds are never golden.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.base import TableFile, Tolerance
from analysis.provenance import ROOT
from analysis.registry import TABLES
from tmpdiff_bench.commands import ArgumentParser, run
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.store import write_atomically
from tmpdiff_bench.zoo.manifest import write_manifest

FLOOR = 1e-6  # relative change of a run in another batch, as recordings measure it on CPUs
SAME = Tolerance(10 * FLOOR, 1e-12, "ten times the numerical floor")
DIGITS = 9  # of a golden number: more than any tolerance asks for


@dataclass(frozen=True)
class Miss:
    """A cell, row, column or file that is not as its golden has it."""

    table: str
    place: str
    words: str

    def __str__(self) -> str:
        return f"{self.table} [{self.place}] {self.words}"


@dataclass
class Outcome:
    """What a check found."""

    same_machine: bool
    misses: list[Miss] = field(default_factory=list)
    compared: int = 0
    skipped: int = 0

    def lines(self) -> Iterator[str]:
        """The misses, and a summary."""
        yield from map(str, self.misses)
        kind = "a machine of the goldens' kind" if self.same_machine else "another kind of machine"
        yield (
            f"{kind}: {self.compared:,} cells compared, {self.skipped:,} not comparable on it, "
            f"{len(self.misses):,} misses"
        )


def golden_folder(quick: bool) -> Path:
    """Where the goldens of a profile are."""
    return ROOT / "data" / "golden" / ("quick" if quick else "full")


def as_golden(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns that are golden."""
    return frame[[name for name in frame if not str(name).endswith("seconds")]]


def compare(table: TableFile, found: pd.DataFrame, golden: pd.DataFrame, outcome: Outcome) -> None:
    """Add the cells of one table to `outcome`."""
    found, golden = as_golden(found), as_golden(golden)

    def miss(place: str, words: str) -> None:
        outcome.misses.append(Miss(table.name, place, words))

    for name in golden.columns.symmetric_difference(found.columns):
        miss("columns", f"{name}: {'lost' if name in golden else 'not in the golden'}")
    keys = list(table.keys)
    if not set(keys) <= set(found) & set(golden):
        return
    rows, expected = _by_key(found, keys), _by_key(golden, keys)
    for key in sorted(rows.keys() ^ expected.keys()):
        miss(", ".join(key), "row lost" if key in expected else "row not in the golden")
    for key, want in expected.items():
        if key not in rows:
            continue
        for name in golden:
            if name in keys or name not in rows[key]:
                continue
            tolerance = _tolerance(table, name, want, outcome.same_machine)
            if tolerance is None:
                outcome.skipped += 1
                continue
            outcome.compared += 1
            words = _difference(rows[key][name], want[name], tolerance)
            if words and (tolerance is SAME or not _overlap(table, name, rows[key], want)):
                miss(", ".join(key), f"{name}: {words}")


def built_on(reports: Path) -> Any:
    """The kind of machine that a reports folder was made on, by its page's provenance."""
    path = reports / "index.prov.json"
    if not path.is_file():
        raise UsageError(f"{reports} has no index.prov.json: nox -s reproduce first")
    return json.loads(path.read_text(encoding="utf-8"))["machine"]


def check(reports: Path, goldens: Path, tables: Sequence[TableFile]) -> Outcome:
    """Compare every declared table; missing and orphaned goldens are misses too."""
    kind = goldens / "machine.json"
    same = kind.is_file() and json.loads(kind.read_text(encoding="utf-8")) == built_on(reports)
    outcome = Outcome(same)
    declared = {table.name: table for table in tables}
    for path in sorted(goldens.glob("*.csv")):
        if path.stem not in declared:
            outcome.misses.append(Miss(path.stem, "file", "an orphaned golden: no such table"))
    for table in tables:
        golden, found = goldens / f"{table.name}.csv", reports / table.files[0]
        if not golden.is_file():
            outcome.misses.append(Miss(table.name, "file", "no golden: nox -s bless"))
        elif not found.is_file():
            outcome.misses.append(Miss(table.name, "file", "table not made"))
        else:
            compare(table, pd.read_csv(found), pd.read_csv(golden), outcome)
    return outcome


def bless(reports: Path, goldens: Path, tables: Sequence[TableFile]) -> list[str]:
    """Make the tables the goldens; returns the names of those that changed.

    Raises:
        UsageError: a declared table is not there.
    """
    missing = [table.name for table in tables if not (reports / table.files[0]).is_file()]
    if missing:
        raise UsageError(f"{reports} lacks {', '.join(missing)}: nox -s reproduce first")
    goldens.mkdir(parents=True, exist_ok=True)
    new = {
        f"{table.name}.csv": as_golden(pd.read_csv(reports / table.files[0])).to_csv(
            index=False, lineterminator="\n", float_format=f"%.{DIGITS}g"
        )
        for table in tables
    }
    new["machine.json"] = json.dumps(built_on(reports), indent=1) + "\n"
    changed = []
    for path in goldens.glob("*"):
        if path.name not in new:
            path.unlink()
            changed.append(path.name)
    for name, text in new.items():
        path = goldens / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_atomically(path, text.encode())
            changed.append(name)
    return sorted(changed)


def note_in_changelog(path: Path, line: str) -> None:
    """Put `line` at the end of the section "Changed", the last one, of what is unreleased."""
    text = path.read_text(encoding="utf-8")
    start = text.index("## [Unreleased]")
    end = text.index("\n## ", start)
    body = text[:end].rstrip("\n")
    head = "" if "### Changed" in text[start:end] else "\n### Changed\n\n"
    write_atomically(path, f"{body}\n{head}- {line}\n{text[end:]}".encode())


def main(argv: Sequence[str]) -> None:
    """Check (exit status 1 on a miss) or bless."""
    parser = ArgumentParser(
        prog="python -m analysis.golden",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=("check", "bless"))
    parser.add_argument("--reports", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--quick", action="store_true", help="the goldens of the small profile")
    parser.add_argument("--reason", help="why goldens change, for the changelog (bless)")
    options = parser.parse_args(argv)
    goldens = golden_folder(options.quick)
    if options.action == "check":
        outcome = check(options.reports, goldens, TABLES)
        print("\n".join(outcome.lines()))
        if outcome.misses:
            raise SystemExit(1)
        return
    if not (options.reason or "").strip():
        raise UsageError('bless takes --reason "...": why are the new numbers right?')
    changed = bless(options.reports, goldens, TABLES)
    if changed:
        write_manifest(ROOT / "data")
        what = f"Goldens ({goldens.name}) of {', '.join(changed)}: {options.reason.strip()}"
        note_in_changelog(ROOT / "CHANGELOG.md", what)
    print(f"blessed {', '.join(changed) or 'nothing: all as before'}")


def _by_key(frame: pd.DataFrame, keys: list[str]) -> dict[tuple[str, ...], dict[Any, Any]]:
    rows: dict[tuple[str, ...], dict[Any, Any]] = {}
    for row in frame.to_dict("records"):
        key = tuple(str(row[name]) for name in keys)
        if key in rows:
            raise UsageError(f"two rows are called {', '.join(key)}: more columns must be keys")
        rows[key] = row
    return rows


def _tolerance(table: TableFile, name: str, row: dict[Any, Any], same: bool) -> Tolerance | None:
    """What a cell is held to; None where nothing can be said."""
    if same or not table.kernels:
        return SAME
    held = all(row[column] in values for column, values in table.rows_elsewhere.items())
    return table.elsewhere.get(name) if held and _is_number(row[name]) else None


def _overlap(table: TableFile, name: str, *rows: dict[Any, Any]) -> bool:
    """Whether the mean of one of two rows lies within the other's interval."""
    if name not in table.intervals:
        return False
    low, high = table.intervals[name]
    return any(a[low] <= b[name] <= a[high] for a, b in (rows, rows[::-1]))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _difference(found: Any, golden: Any, tolerance: Tolerance) -> str:
    """How a cell differs, in words; empty if it does not."""
    if not (_is_number(found) and _is_number(golden)):
        both_empty = pd.isna(found) and pd.isna(golden)
        return "" if both_empty or found == golden else f"{found}, golden {golden}"
    exact = isinstance(golden, int) and isinstance(found, int)
    if found == golden if exact else tolerance.holds(float(found), float(golden)):
        return ""
    change = f"{found / golden - 1:+.2%}" if golden else "golden is 0"
    allowed = "exact" if exact else f"{tolerance.relative:.2g} relative"
    if tolerance.absolute > 1e-9 and not exact:
        allowed += f" + {tolerance.absolute:.2g}"
    return f"{found:.6g}, golden {golden:.6g} ({change}; allowed: {allowed}, {tolerance.reason})"


if __name__ == "__main__":
    run(main)
