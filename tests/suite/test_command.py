"""The command: its errors, its list, and allocators of strangers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.suite.conftest import TINY
from tmpdiff_bench.commands import run
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.suite import __main__ as command
from tmpdiff_bench.suite import v1
from tmpdiff_bench.suite.rules import load_allocators

STRANGERS = """
from tmpdiff_bench.allocators import declares, knapsack

NUMBER = 3

@declares(predicts="sum")
def mine(problem):
    return knapsack(problem)

@declares(predicts="sum")
def greedy_liar(problem):
    import dataclasses
    return dataclasses.replace(knapsack(problem), evaluations=1)

def broken(problem):
    raise RuntimeError("two\\nlines")
"""


def end_of(argv: Sequence[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit_:
        run(command.main, argv)
    out, err = capsys.readouterr()
    return int(str(exit_.value.code)), out, err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--models", "sd4"], "unknown model 'sd4': did you mean 'sd3'"),
        (["--quick", "--models", "pixart"], "unknown model of the quick profile 'pixart'"),
        (["--models", ","], "no task is left"),
        (["--tasks", "sd3/*/S9"], "unknown task 'sd3/*/S9'"),
        (["--allocator", "json"], "not of the form package.module:function"),
        (["--allocator", "no_such_module:f"], "no_such_module can't be imported"),
        (["--allocator", "json:nothing"], "json has no function 'nothing'"),
        (["--out", __file__], "is a file: name a folder"),
        (["--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_mistakes_are_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = end_of(argv, capsys)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_the_list_has_every_task_and_a_forecast(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = end_of(["--list", "--quick"], capsys)
    assert status == 0
    assert all(task.name in out for task in v1.QUICK.tasks())
    assert f"{len(v1.QUICK.tasks())} tasks of suite v1, profile quick: " in out


def test_help_is_fast_and_has_examples() -> None:
    program = (
        "import sys\nfrom tmpdiff_bench.suite.__main__ import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(*sorted(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "examples:" in done.stdout
    assert not {"torch", "pandas"} & set(done.stderr.split())


@pytest.fixture
def strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"strangers_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(STRANGERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return name


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("NUMBER", "has no function 'NUMBER'"),
        ("greedy_liar", "breaks the contract of allocators: evaluations are not"),
        ("broken", "breaks the contract of allocators: it raised RuntimeError: two lines"),
    ],
)
def test_strangers_are_checked_first(strangers: str, function: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_allocators([f"{strangers}:{function}"])


def test_a_stranger_is_printed_beside_ours(
    toys: None,
    strangers: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(v1.PROFILES, "quick", TINY)
    name = f"{strangers}:mine"
    argv = ["--quick", "--allocator", name, "--out", str(tmp_path / "out")]
    status, out, _ = end_of(argv, capsys)
    assert status == 0
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert lines[name][1:6] == lines["knapsack"][1:6]
    assert max(map(len, out.splitlines()[:18])) <= 120
    status, out, _ = end_of([*argv, "--json"], capsys)
    rows = {row["allocator"]: row for row in json.loads(out)["allocators"]["S=8"]}
    assert rows[name]["error"] == rows["knapsack"]["error"]
    assert rows["exhaustive"]["regret"] == 0
