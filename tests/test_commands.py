"""Commands end with one line and the right exit status."""

from __future__ import annotations

import argparse
import errno
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tmpdiff_bench import commands
from tmpdiff_bench.errors import UsageError

QUANTIZER = "diffusers.quantizers.torchao.torchao_quantizer"


def outcome(
    capsys: pytest.CaptureFixture[str], error: BaseException | None
) -> tuple[object, str, str]:
    """Exit status, stdout and stderr of a command that raises `error`."""

    def main(argv: Sequence[str]) -> None:
        if error is not None:
            raise error

    with pytest.raises(SystemExit) as ended:
        commands.run(main, [])
    printed = capsys.readouterr()
    return ended.value.code, printed.out, printed.err


def test_success_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(capsys, None) == (0, "", "")


def test_main_gets_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Sequence[str]] = []
    monkeypatch.setattr("sys.argv", ["program", "--model", "sd3"])
    for argv in (None, ["--help-me"]):
        with pytest.raises(SystemExit):
            commands.run(seen.append, argv)
    assert seen == [["--model", "sd3"], ["--help-me"]]


def test_a_usage_error_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = outcome(capsys, UsageError("unknown model 'sd4':\n  known: sd3"))
    assert (status, out, err) == (2, "", "error: unknown model 'sd4': known: sd3\n")


def test_an_interrupt_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = outcome(capsys, KeyboardInterrupt())
    assert (status, out, err.count("\n")) == (130, "", 1)
    assert "run the same command again" in err


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line_and_status_1(
    capsys: pytest.CaptureFixture[str], code: int
) -> None:
    status, out, err = outcome(capsys, OSError(code, "No space left on device", "latents.bin"))
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("error: no room left on disk for latents.bin; finished work is kept")
    assert "None" not in outcome(capsys, OSError(code, "No space left on device"))[2]


@pytest.mark.parametrize(
    "error", [ValueError("a fault"), PermissionError(errno.EACCES, "denied"), OSError("a fault")]
)
def test_faults_keep_their_trace(error: Exception) -> None:
    def main(argv: Sequence[str]) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        commands.run(main, [])
    assert caught.value is error


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--steps", "0"], "argument --steps: '0' is not a whole number of at least 1"),
        (["--steps", "-3"], "'-3'"),
        (["--steps", "2.5"], "'2.5'"),
        (["--guidance", "nan"], "argument --guidance: 'nan' is not a finite number"),
        (["--guidance=-inf"], "'-inf'"),
        (["--guidance", "much"], "'much'"),
        (["--stpes", "3"], "unrecognized arguments: --stpes 3"),
    ],
)
def test_bad_arguments_are_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], argv: list[str], named: str
) -> None:
    parser = commands.ArgumentParser(prog="program")
    parser.add_argument("--steps", type=commands.positive_int)
    parser.add_argument("--guidance", type=commands.finite_float)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(argv)
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out, printed.err.count("\n")) == (2, "", 1)
    assert printed.err.startswith("error: ")
    assert named in printed.err


def test_good_arguments_are_read() -> None:
    assert commands.positive_int("20") == 20
    assert commands.finite_float("-4.5e0") == -4.5


@pytest.mark.parametrize(
    ("text", "message"),
    [("a,,b", "'a,,b' is not a list of names"), ("a,b,a", "'a,b,a' names a more than once")],
)
def test_lists_of_names_are_checked(text: str, message: str) -> None:
    assert commands.names("a, b") == ("a", "b")
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        commands.names(text)


def test_folders_that_can_not_be_written_are_known_before_the_work(tmp_path: Path) -> None:
    assert commands.out_folder(str(tmp_path / "new" / "one")) == tmp_path / "new" / "one"
    assert list(tmp_path.iterdir()) == [], "asking makes nothing"
    (tmp_path / "file").write_text("")
    for bad in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(argparse.ArgumentTypeError, match="file is no folder that can be writ"):
            commands.out_folder(str(bad))


def test_subcommands_take_no_abbreviations_either() -> None:
    parser = commands.ArgumentParser(prog="program")
    below = parser.add_subparsers(dest="command").add_parser("go")
    below.add_argument("--steps")
    assert type(below) is commands.ArgumentParser
    with pytest.raises(SystemExit):
        parser.parse_args(["go", "--step", "3"])


def test_scripts_print_no_noise_of_imports() -> None:
    """They import what is heavy before they call `commands.run`; all of them in one process."""
    root = Path(__file__).parents[1]
    scripts = [p for folder in ("analysis", "benchmarks") for p in (root / folder).glob("*.py")]
    names = [".".join(path.relative_to(root).with_suffix("").parts) for path in sorted(scripts)]
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "print('diffusers.quantizers.torchao.torchao_quantizer' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *names],
        capture_output=True,
        text=True,
        check=True,
        cwd=root,
    )
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_only_the_noise_of_imports_is_silenced(capsys: pytest.CaptureFixture[str]) -> None:
    outcome(capsys, None)
    for name, message, shown in [
        ("torch.utils._pytree", "X is an Enum subclass and is now natively supported by", False),
        ("torch.utils._pytree", "something that matters", True),
        (QUANTIZER, "Unable to import `torchao` Tensor objects. This may affect loading", False),
        (QUANTIZER, "something that matters", True),
    ]:
        record = logging.makeLogRecord({"name": name, "msg": message})
        assert bool(logging.getLogger(name).filter(record)) == shown
