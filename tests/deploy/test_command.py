"""`python -m tmpdiff_bench.deploy`: files in, files out, one line for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from tmpdiff_bench.commands import run
from tmpdiff_bench.deploy.__main__ import main
from tmpdiff_bench.deploy.comparison import compare, side_by_side
from tmpdiff_bench.pipelines import load_pipeline
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


def test_pictures_stand_side_by_side_under_titles() -> None:
    red, blue = (Image.new("RGB", (96, 64), colour) for colour in ("red", "blue"))
    sheet = side_by_side(red, blue)
    left, right = ((0, sheet.height - 64, 96, sheet.height), (98, 18, 194, 82))
    assert sheet.size == (194, 82)
    assert sheet.crop(left).tobytes() == red.tobytes()
    assert sheet.crop(right).tobytes() == blue.tobytes()
    for half in ((0, 0, 96, 18), (98, 0, 194, 18)):
        title = ImageOps.invert(sheet.crop(half).convert("L")).getbbox()
        assert title is not None
        assert title[2] < 96, "not cut at the right"
        assert title[3] < 18, "nor below"


def test_apply_draws_both_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short, out = tmp_path / "short.json", tmp_path / "image.png"
    short.write_text(PrecisionPlan.parse("fp32 w4a4").to_json())
    main(["apply", str(short), "--prompt", "a red circle", "--out", str(out), "--repeats", "1"])
    printed = capsys.readouterr().out
    assert "w4a4 simulated" in printed
    assert "no speed of any kernel" in printed
    assert "measured speedup" not in printed
    with Image.open(out) as picture:
        assert picture.size == (2 * 64 + 2, 64 + 18)


def test_a_plan_carries_the_noise_levels_it_was_made_for(tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    argv = ["allocate", "--model", "sd3", "--steps", "3", "--levels", "fp32,w4a4", "--speedup", "2"]
    main([*argv, "--num-prompts", "2", "--out", str(out)])
    plan = PrecisionPlan.from_json(out.read_text())
    pipe = load_pipeline("sd3").pipeline
    pipe.scheduler.set_timesteps(3)
    assert plan.schedule is not None
    assert plan.schedule.scheduler == "FlowMatchEulerDiscreteScheduler"
    assert plan.schedule.sigmas == pytest.approx(pipe.scheduler.sigmas[:-1].tolist())
    image = tmp_path / "image.png"
    call = ["--call", "guidance_scale=2.5", "--seed", "3", "--repeats", "1"]
    main(["apply", str(out), "--prompt", "a blue star", "--out", str(image), *call])
    assert image.exists()


@pytest.mark.parametrize(
    ("dtype", "reference", "plan", "emulated"),
    [
        ("fp32", "fp32", "fp32 w4a4", ("w4a4",)),
        ("fp32", "bf16", "fp32*2", ("bf16",)),
        ("bf16", "bf16", "bf16 fp32", ()),
    ],
)
def test_times_are_a_speedup_only_where_nothing_is_emulated(
    dtype: str, reference: str, plan: str, emulated: tuple[str, ...]
) -> None:
    """Neither in the plan nor in the reference; a model's own dtype is not emulated."""
    loaded = load_pipeline("sd3", dtype=dtype)
    chosen = PrecisionPlan.parse(plan)
    found = compare(loaded, chosen, "a red circle", repeats=1, reference=reference)
    assert found.simulated == emulated
    assert ("measured speedup" in str(found)) == (not emulated)


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
        (["apply", "PLAN", "--prompt", "x", "--out", "a.json"], "no ending of a picture"),
        (
            ["apply", "PLAN", "--prompt", "x", "--out", "a.png", "--call", "guidance=2"],
            "did you mean 'guidance_scale'",
        ),
        (["apply", "PLAN", "--prompt", "x", "--out", "no/such/a.png"], "can't be written"),
        (["apply", "CUT", "--prompt", "x", "--out", "a.png"], "a plan's JSON can't be read"),
        (["apply", "MORE", "--prompt", "x", "--out", "a.png"], "got the fields ['levels', 'note'"),
        (["export", "PLAN", "--format", "comma", "--out", "/"], "no file that can be written"),
        (["export", "PLAN", "--format", "comma", "--out", "a" * 300], "File name too long"),
        (["export", "PLAN", "--format", "json", "--recording", "r"], "--recording has no effect"),
        (["import", "COMMA", "--steps", "2"], "no effect on a comma list"),
        (["allocate", "--recording", "r", "--speedup", "2", "--out", "a.json"], "no recording"),
        (
            ["allocate", "--recording", "r", "--model", "sd3", "--speedup", "2", "--out", "a.json"],
            "--model has no effect with --recording",
        ),
        (
            ["allocate", "--recording", "r", "--steps", "8", "--speedup", "2", "--out", "a.json"],
            "--steps has no effect with --recording",
        ),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    plan: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = plan.with_name("mixed.json")
    mixed.write_text(PrecisionPlan.parse("w4a4 fp32 w4a4").to_json())
    files = {"PLAN": str(plan), "MIXED": str(mixed)}
    texts = {
        "CUT": FIRST_LAST.to_json()[:-1],
        "MORE": FIRST_LAST.to_json()[:-1] + ', "note": 1}',
        "COMMA": "fp32,w4a4",
    }
    for name, text in texts.items():
        files[name] = str(plan.with_name(name))
        Path(files[name]).write_text(text)
    with pytest.raises(SystemExit) as ended:
        run(main, [files.get(argument, argument) for argument in arguments])
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out, printed.err.count("\n")) == (2, "", 1)
    assert message in printed.err
