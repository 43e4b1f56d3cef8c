"""`python -m tmpdiff_bench.deploy`: files in, files out, one line for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tmpdiff_bench.commands import run
from tmpdiff_bench.deploy.__main__ import main
from tmpdiff_bench.plan import PrecisionPlan

FIRST_LAST = PrecisionPlan.parse("fp32*2 w4a4*3 fp32")


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    path.write_text(FIRST_LAST.to_json())
    return path


@pytest.mark.parametrize("format", ["diffusion-step-policy", "comma"])
def test_what_is_exported_is_imported(
    plan: Path, tmp_path: Path, format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["export", str(plan), "--format", format])
    printed = capsys.readouterr().out
    file, back = tmp_path / "exported", tmp_path / "back.json"
    main(["export", str(plan), "--format", format, "--out", str(file)])
    assert file.read_text() == printed
    named = ["--steps", "6", "--levels", "fp32,w4a4"] if format != "comma" else []
    main(["import", str(file), *named, "--out", str(back)])
    assert PrecisionPlan.from_json(back.read_text()) == FIRST_LAST
    capsys.readouterr()
    main(["import", str(file), *named])
    assert capsys.readouterr().out == back.read_text()


def test_a_policy_says_what_its_modes_are(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["export", str(plan), "--format", "diffusion-step-policy"])
    printed = capsys.readouterr()
    assert printed.err == "a16 is fp32, native is w4a4\n"
    assert "diffusion_step_policy" in json.loads(printed.out)["quantization_config"]["runtime"]


def test_apply_draws_both_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short, out = tmp_path / "short.json", tmp_path / "image.png"
    short.write_text(PrecisionPlan.parse("fp32 w4a4").to_json())
    main(["apply", str(short), "--prompt", "a red circle", "--out", str(out), "--repeats", "1"])
    printed = capsys.readouterr().out
    assert "w4a4 simulated" in printed
    assert "no speed of any kernel" in printed
    assert "measured speedup" not in printed
    with Image.open(out) as picture:
        assert picture.size == (128, 64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "none.json", "--format", "comma"], "none.json can't be read"),
        (["export", "PLAN", "--format", "comma", "--out", "no/such/file"], "--out no/such/file"),
        (["export", "MIXED", "--format", "diffusion-step-policy"], "name a recording"),
        (["export", "PLAN", "--format", "comas"], "invalid choice: 'comas'"),
        (["import", "PLAN"], "give --steps and --levels"),
        (["import", "PLAN", "--steps", "6", "--levels", "fp32,w4a4"], "has the unknown fields"),
        (["import", "PLAN", "--steps", "6", "--levels", "a,b,c"], "high level and its low one"),
        (["allocate", "--speedup", "2", "--out", "a.json"], "name a model by --model"),
        (["allocate", "--speedup", "2", "--out", "a.json", "--allocator", "grm"], "'gram'"),
        (["allocate", "--speedup", "nan", "--out", "a.json"], "not a finite number"),
        (["apply", "PLAN", "--prompt", " ", "--out", "a.png"], "--prompt is empty"),
        (["apply", "PLAN", "--prompt", "x", "--out", "a.png", "--model", "sd4"], "'sd3'"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    plan: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = plan.with_name("mixed.json")
    mixed.write_text(PrecisionPlan.parse("w4a4 fp32 w4a4").to_json())
    files = {"PLAN": str(plan), "MIXED": str(mixed)}
    with pytest.raises(SystemExit) as ended:
        run(main, [files.get(argument, argument) for argument in arguments])
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out, printed.err.count("\n")) == (2, "", 1)
    assert message in printed.err
