"""Goldens: an altered number is seen, and so are missing and orphaned files."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.base import TableFile, Tolerance
from analysis.golden import bless, check, golden_folder, note_in_changelog
from analysis.provenance import ROOT
from analysis.registry import TABLES
from tmpdiff_bench.errors import UsageError

LOOSE = Tolerance(0.5, 0, "chaos")
TABLE = TableFile("regret", ("model", "allocator"), elsewhere={"error": LOOSE})
FRAME = pd.DataFrame(
    {
        "model": ["sd3", "sd3", "flux"],
        "allocator": ["gram", "knapsack", "gram"],
        "error": [0.1, 0.2, float("nan")],
        "evaluations": [17, 17, 41],
        "plan": ["fp32*3 w4a4*5", "w4a4*8", "w4a4*8"],
        "seconds": [1.0, 2.0, 3.0],
    }
)
finite = st.floats(-1e6, 1e6)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A reports folder with one table, and the goldens made of it."""
    (tmp_path / "reports" / "tables").mkdir(parents=True)
    FRAME.to_csv(tmp_path / "reports" / "tables" / "regret.csv", index=False)
    (tmp_path / "reports" / "index.prov.json").write_text('{"machine": {"processor": "this one"}}')
    bless(tmp_path / "reports", tmp_path / "golden", [TABLE])
    return tmp_path / "reports", tmp_path / "golden"


def altered(reports: Path, change: Callable[[pd.DataFrame], object]) -> None:
    path = reports / "tables" / "regret.csv"
    frame = pd.read_csv(path)
    change(frame)
    frame.to_csv(path, index=False)


def as_if_elsewhere(goldens: Path) -> None:
    (goldens / "machine.json").write_text('{"processor": "another"}')


def put(row: int, column: str, value: object) -> Callable[[pd.DataFrame], object]:
    def change(frame: pd.DataFrame) -> None:
        frame.loc[row, column] = value

    return change


def test_what_was_blessed_passes(folders: tuple[Path, Path]) -> None:
    outcome = check(*folders, [TABLE])
    assert (outcome.same_machine, outcome.misses, outcome.compared) == (True, [], 9)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put(0, "error", 0.1001), r"regret \[sd3, gram\] error: 0.1001, golden 0.1 \(\+0.10%"),
        (put(0, "error", 0.0999), r"regret \[sd3, gram\] error: 0.0999, golden 0.1 \(-0.10%"),
        (put(2, "error", 0.1), r"regret \[flux, gram\] error: 0.1, golden nan"),
        (put(1, "evaluations", 18), r"evaluations: 18, golden 17 .*exact"),
        (put(1, "plan", "fp32*8"), r"plan: fp32\*8, golden w4a4\*8"),
        (put(1, "allocator", "beam"), r"\[sd3, beam\] row not in the golden"),
    ],
)
def test_an_altered_cell_is_a_miss(
    folders: tuple[Path, Path], change: Callable[[pd.DataFrame], object], words: str
) -> None:
    altered(folders[0], change)
    lines = "\n".join(check(*folders, [TABLE]).lines())
    assert re.search(words, lines)


def test_seconds_are_never_golden(folders: tuple[Path, Path]) -> None:
    altered(folders[0], put(0, "seconds", 99.0))
    assert check(*folders, [TABLE]).misses == []
    assert "seconds" not in pd.read_csv(folders[1] / "regret.csv")


def test_another_machine_is_held_to_the_declared_tolerances_only(
    folders: tuple[Path, Path],
) -> None:
    as_if_elsewhere(folders[1])
    altered(folders[0], put(0, "error", 0.14))
    altered(folders[0], put(1, "plan", "fp32*8"))
    outcome = check(*folders, [TABLE])
    assert (outcome.same_machine, outcome.misses) == (False, [])
    assert (outcome.compared, outcome.skipped) == (3, 6)
    altered(folders[0], put(0, "error", 0.16))
    assert [str(miss)[:25] for miss in check(*folders, [TABLE]).misses] == [
        "regret [sd3, gram] error:"
    ]
    altered(folders[0], put(0, "model", "sdxl"))  # rows are exact everywhere
    assert len(check(*folders, [TABLE]).misses) == 2


def test_another_machine_is_held_to_some_rows_only(folders: tuple[Path, Path]) -> None:
    as_if_elsewhere(folders[1])
    altered(folders[0], lambda frame: frame.update(frame[["error"]] * 3))
    some = replace(TABLE, rows_elsewhere={"allocator": ("knapsack",)})
    outcome = check(*folders, [some])
    assert [str(miss)[:29] for miss in outcome.misses] == ["regret [sd3, knapsack] error:"]
    assert (outcome.compared, outcome.skipped) == (1, 8)


def test_means_on_another_machine_may_lie_in_each_others_intervals(
    folders: tuple[Path, Path],
) -> None:
    """There only, and only one of both in the other's."""
    widths = {"low": 0.05, "high": 0.5}
    altered(folders[0], lambda frame: [frame.insert(3, *width) for width in widths.items()])
    wide = replace(TABLE, intervals={"error": ("low", "high")})
    bless(*folders, [wide])
    altered(folders[0], put(0, "error", 0.4))
    assert [str(miss)[:25] for miss in check(*folders, [wide]).misses] == [
        "regret [sd3, gram] error:"
    ]
    as_if_elsewhere(folders[1])
    assert check(*folders, [wide]).misses == []
    altered(folders[0], put(0, "high", 0.05))  # the golden's still holds the new mean
    assert check(*folders, [wide]).misses == []
    altered(folders[0], put(0, "error", 0.6))
    assert len(check(*folders, [wide]).misses) == 1


def test_a_table_without_kernels_is_exact_everywhere(folders: tuple[Path, Path]) -> None:
    as_if_elsewhere(folders[1])
    altered(folders[0], put(1, "plan", "fp32*8"))
    exact = TableFile("regret", TABLE.keys, kernels=False)
    assert len(check(*folders, [exact]).misses) == 1


def test_missing_and_orphaned_goldens_and_tables_are_misses(folders: tuple[Path, Path]) -> None:
    reports, goldens = folders
    more = TableFile("ranks", ("steps",))
    assert "no golden" in str(check(reports, goldens, [TABLE, more]).misses[0])
    assert "orphaned" in str(check(reports, goldens, []).misses[0])
    (reports / "tables" / "regret.csv").unlink()
    assert "not made" in str(check(reports, goldens, [TABLE]).misses[0])
    with pytest.raises(UsageError, match="lacks regret"):
        bless(reports, goldens, [TABLE])


def test_keys_must_name_one_row(folders: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match="two rows are called sd3"):
        check(*folders, [TableFile("regret", ("model",))])


def test_blessing_says_what_changed_and_removes_orphans(folders: tuple[Path, Path]) -> None:
    reports, goldens = folders
    assert bless(reports, goldens, [TABLE]) == []
    (goldens / "old.csv").write_text("a\n")
    altered(reports, put(0, "error", 0.3))
    assert bless(reports, goldens, [TABLE]) == ["old.csv", "regret.csv"]
    assert check(reports, goldens, [TABLE]).misses == []


def test_the_changelog_gets_its_line_under_unreleased_changes(tmp_path: Path) -> None:
    path = tmp_path / "CHANGELOG.md"
    released = "## [0.1.0]\n\n### Changed\n\n- All.\n"
    path.write_text(f"# Changelog\n\n## [Unreleased]\n\n{released}", encoding="utf-8")
    note_in_changelog(path, "Goldens: new sampler.")
    note_in_changelog(path, "Goldens: new seeds.")
    lines = "### Changed\n\n- Goldens: new sampler.\n- Goldens: new seeds.\n"
    text = path.read_text(encoding="utf-8")
    assert text == f"# Changelog\n\n## [Unreleased]\n\n{lines}\n{released}"


def test_our_changelog_takes_a_line(tmp_path: Path) -> None:
    path = tmp_path / "CHANGELOG.md"
    path.write_text((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), encoding="utf-8")
    note_in_changelog(path, "Goldens: new sampler.")
    after = path.read_text(encoding="utf-8")
    assert after.index("[Unreleased]") < after.index("- Goldens: new s") < after.index("## [0.2.0]")


@given(golden_value=finite, share=st.floats(0, 2), sign=st.sampled_from((1, -1)))
def test_tolerances_are_two_sided(golden_value: float, share: float, sign: int) -> None:
    tolerance = Tolerance(0.01, 0.001, "any")
    allowed = 0.001 + 0.01 * abs(golden_value)
    found = golden_value + sign * share * allowed
    if abs(share - 1) > 1e-6:
        assert tolerance.holds(found, golden_value) == (share < 1)


def test_nan_is_near_nan_only() -> None:
    nan = float("nan")
    assert LOOSE.holds(nan, nan)
    assert not LOOSE.holds(nan, 1.0)
    assert not LOOSE.holds(1.0, nan)


@pytest.mark.parametrize("quick", [True, False])
def test_published_reports_have_a_golden_for_every_table_and_no_other(quick: bool) -> None:
    published = (ROOT / "reports" / "index.html").is_file()
    names = {path.stem for path in golden_folder(quick).glob("*.csv")}
    assert names == ({table.name for table in TABLES} if published else set())


def test_a_published_table_is_its_golden() -> None:
    outcome = check(ROOT / "reports", golden_folder(quick=False), TABLES)
    assert outcome.same_machine
    assert outcome.misses == []
