"""Measurements: known times are recovered, real processes answer, bad input is one clear error."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.costs.small import SMALL
from tests.processor import needs
from tmpdiff_bench.commands import run
from tmpdiff_bench.costs import Cost, CostTable, load_costs
from tmpdiff_bench.costs import measure as measuring
from tmpdiff_bench.costs.__main__ import main
from tmpdiff_bench.costs.architectures import ARCHITECTURES, architecture
from tmpdiff_bench.costs.isolation import Subject, Worker, median_cost
from tmpdiff_bench.costs.measure import measure
from tmpdiff_bench.costs.report import checks_text, comparison_text, measured_text
from tmpdiff_bench.costs.subjects import TrueSize
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.plan import PrecisionPlan

STEP = {"fp32": 8.0, "native:w8a8": 5.0}  # ms
SWITCH, TOGETHER = 0.25, {"fp32": 0.0, "native:w8a8": 1.0}
SUBJECT = Subject("sd3", tuple(STEP), steps=10)


class Clockwork:
    """A worker whose times are known: steps, switches, and what living together costs."""

    asked: list[tuple[tuple[str, ...], PrecisionPlan]] = []

    def __init__(self, subject: Subject) -> None:
        self.levels = subject.levels

    def close(self) -> None:
        pass

    def wait(self) -> dict[str, Any]:
        return {
            "title": "sd3 (clockwork)",
            "environment": {"device": "a Clock (R)", "threads": 1, "torch": "2", "git_dirty": True},
        }

    def seconds(self, plan: PrecisionPlan) -> float:
        self.asked.append((self.levels, plan))
        assert set(plan) <= set(self.levels)
        shared = len(self.levels) > 1
        ms = sum(STEP[level] + shared * TOGETHER[level] for level in plan)
        ms += SWITCH * (len(str(plan).split()) - 1)
        return ms * random.Random(len(self.asked)).choice([0.98, 1.0, 1.0, 1.0, 1.04]) / 1e3


@pytest.fixture
def clockwork(monkeypatch: pytest.MonkeyPatch) -> type[Clockwork]:
    monkeypatch.setattr(measuring, "Worker", Clockwork)
    monkeypatch.setattr(measuring, "_PAUSE", 0.0)
    Clockwork.asked.clear()
    return Clockwork


def test_known_times_are_recovered(clockwork: type[Clockwork]) -> None:
    plan = PrecisionPlan.parse("fp32*2 native:w8a8*8")
    found = measure(SUBJECT, repeats=25, plans=[plan])
    table = found.table
    assert {level: cost.ms for level, cost in table.levels.items()} == pytest.approx(STEP)
    for cost in table.levels.values():
        assert cost.interval is not None
        assert cost.interval[0] <= cost.ms <= cost.interval[1]
    assert found.speedups["native:w8a8"].ms == pytest.approx(8 / 5, rel=0.05)
    [check] = found.checks
    assert check.predicted == pytest.approx(2 * 8 + 8 * 5 + max(0.0, table.switch.ms))
    assert check.measured.ms == pytest.approx(2 * 8 + 8 * 6 + SWITCH, rel=0.02)
    assert check.together == pytest.approx(8.0, abs=0.5)
    whole = check.predicted + check.together + check.rest
    assert whole == pytest.approx(check.measured.ms)
    assert abs(check.rest) < 1.5
    assert table.model == "sd3 (clockwork)"
    assert table.name == "measured-sd3-a-clock-r-batch1"
    assert table.versions == {"torch": "2"}


def test_a_switch_is_told_from_steps(
    clockwork: type[Clockwork], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "Random", lambda seed: _Steady())
    switch = measure(SUBJECT, repeats=6).table.switch
    assert switch.ms == pytest.approx(SWITCH)
    assert switch.interval == pytest.approx((SWITCH, SWITCH))


class _Steady:
    def choice(self, values: list[float]) -> float:
        return 1.0

    def sample(self, values: list[Any], count: int) -> list[Any]:
        return values[:count]


def test_every_level_has_a_process_and_every_round_everything(clockwork: type[Clockwork]) -> None:
    measure(SUBJECT, repeats=6)
    alone = [(levels, plan) for levels, plan in clockwork.asked if len(levels) == 1]
    assert all(set(plan) == set(levels) for levels, plan in alone)
    jobs = len(clockwork.asked) // 7  # six rounds and the one that warms up
    rounds = [clockwork.asked[i * jobs : (i + 1) * jobs] for i in range(7)]
    assert all(set(one) == set(rounds[0]) and len(set(one)) == jobs for one in rounds)
    assert any(one != rounds[0] for one in rounds)


def test_reports_show_speedups_and_gaps(clockwork: type[Clockwork]) -> None:
    plan = PrecisionPlan.parse("fp32*2 native:w8a8*8")
    found = measure(SUBJECT, repeats=15, plans=[plan, plan])
    text = measured_text(found)
    assert "sd3 (clockwork) on a Clock (R) (measured)" in text
    assert "native:w8a8" in text
    checked = checks_text(found.checks)
    assert checked.count(str(plan)) == 1
    assert f"{found.checks[0].predicted_speedup:.3f}x" in checked


@given(st.lists(st.floats(1, 100), min_size=6, max_size=40), st.floats(0.1, 10))
def test_intervals_hold_the_median_and_scale(times: list[float], factor: float) -> None:
    cost = median_cost(times)
    assert cost.interval is not None
    assert cost.interval[0] <= np.median(times) <= cost.interval[1]
    assert {*cost.interval} <= set(times)
    assert median_cost([factor * t for t in times]).ms == pytest.approx(factor * cost.ms)


@pytest.mark.parametrize("count", [6, 15, 30])
def test_intervals_cover_as_often_as_they_say(count: int) -> None:
    """Skewed times, whose true median is known; coverage is exact in the binomial distribution."""
    rng = np.random.default_rng(count)
    draws = rng.lognormal(size=(4000, count))
    inside = [
        low <= 1.0 <= high
        for low, high in (median_cost(row.tolist()).interval or (0, 0) for row in draws)
    ]
    misses = 0.0
    for rank in range(count):
        if misses + 2 * math.comb(count, rank) / 2**count > 0.05:
            break
        misses += 2 * math.comb(count, rank) / 2**count
    assert misses <= 0.05
    assert np.mean(inside) == pytest.approx(1 - misses, abs=0.015)


@pytest.mark.parametrize(
    ("changes", "repeats", "plan", "message"),
    [
        ({"levels": ("fp32", "w8a8")}, 6, None, "w8a8 is simulated: .* measure native:w8a8"),
        ({"levels": ("fp32",)}, 6, None, "the reference and at least one other"),
        ({"levels": ("fp32", "fp32")}, 6, None, "each once"),
        ({}, 5, None, "--repeats 5: an interval needs at least 6"),
        ({"steps": 2}, 6, None, "--steps 2: 2 levels can't take turns"),
        ({}, 6, "fp32*3", "has 3 steps, --steps is 10"),
        ({}, 6, "fp32*9 native:bf16", "native:bf16 is not among --levels fp32,native:w8a8"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_loaded(
    changes: dict[str, Any], repeats: int, plan: str | None, message: str
) -> None:
    subject = Subject(**{**vars(SUBJECT), **changes})
    plans = [PrecisionPlan.parse(plan)] if plan else []
    with pytest.raises(UsageError, match=message):
        measure(subject, repeats=repeats, plans=plans)


def test_a_process_times_the_real_loop_and_tells_its_errors() -> None:
    subject = Subject("sd3", ("fp32",), steps=4)
    with closing(Worker(subject)) as worker:
        about = worker.wait()
        assert about["title"].startswith("sd3 (embedded")
        assert about["environment"]["threads"] >= 1
        short = worker.seconds(PrecisionPlan.parse("fp32"))
        assert 0 < short < worker.seconds(PrecisionPlan.uniform("fp32", 4)) < 60
        with pytest.raises(UsageError, match="unknown level"):
            worker.seconds(PrecisionPlan.parse("w9a9"))


@needs("native:bf16")
@pytest.mark.parametrize("model", ARCHITECTURES)
def test_true_size_denoisers_run_with_random_weights(model: str) -> None:
    """Here at small size; the inputs' shapes are those of the true one."""
    shape = architecture(model)
    shape = replace(shape, config={**shape.config, **SMALL[model]})
    subject = Subject(model, ("native:bf16",), weights="random", resolution=64, steps=2, batch=2)
    network = TrueSize(shape, subject)
    assert network.title == f"{shape.title} at 64x64"
    output = network.run(PrecisionPlan.uniform("native:bf16", 2))
    assert output.dtype == torch.bfloat16
    assert output.isfinite().all()
    assert len(output) == 2 * shape.rows
    with pytest.raises(UsageError, match="their reference is native:bf16"):
        TrueSize(shape, replace(subject, levels=("fp32",)))


def test_a_process_that_died_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho out of memory >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with (
        closing(Worker(SUBJECT)) as worker,
        pytest.raises(RuntimeError, match="a timing process died: out of memory"),
    ):
        worker.wait()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("roofline --model fluks --hardware h200", "unknown model 'fluks': did you mean 'flux'"),
        ("roofline --model flux --hardware h201", "unknown hardware 'h201': did you mean 'h20"),
        ("roofline --model flux --hardware none.toml", "can't be read"),
        ("roofline --model sd3 --hardware h200 --resolution 100", "in steps of 16, not 100x100"),
        ("roofline --model sd3 --hardware h200 --levels w4a4", "no 4-bit mode"),
        ("roofline --model sd3 --hardware h200 --levels native:w8a8", "a roofline knows w8a8"),
        ("roofline --model sd3 --hardware h200 --levels w8b8", "unknown level 'w8b8'"),
        ("measure --model sd3 --levels fp32,w8a8", "w8a8 is simulated"),
        ("measure --model sd3 --levels fp32,native:w8a8 --repeats 2", "at least 6"),
        ("measure --model sd3 --levels fp32,,x", "is not a list of names"),
        ("measure --model sd3 --levels fp32,native:w8a8 --plan fp32*x", "bad run 'fp32*x'"),
        ("measure --model fluks --levels fp32,native:w8a8", "unknown model 'fluks': did you mean"),
        (
            "measure --model sd3 --levels fp32,native:w8a8 --resolution 64",
            "an effect only with --w",
        ),
        (
            "measure --model sd3 --weights random --levels native:bf16,native:w8a8 --call a=2",
            "no effect with --weights random",
        ),
        ("roofline --model sd3,sd3 --hardware h200", "names sd3 more than once"),
        ("roofline --model sd3 --hardware h200 --resolution -5", "'-5' is not a whole number"),
        ("compare roofline-flux-h200-1024 roofline-flux-h200-1024", "takes a measured table"),
        ("compare nothing-like-it roofline-flux-h200-1024", "unknown cost table"),
    ],
)
def test_bad_input_is_one_line(
    arguments: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = arguments.split()
    if argv[0] != "compare":
        argv += ["--out", str(tmp_path)]
    with pytest.raises(SystemExit) as ended:
        run(main, argv)
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_the_command_writes_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["roofline", "--model", "pixart", "--hardware", "h200", "--resolution", "512"]
    main([*argv, "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    table = load_costs(tmp_path / "roofline-pixart-h200-512.json")
    assert "PixArt-Sigma XL/2 at 512x512 on H200 SXM (roofline)" in printed
    assert "w4a4: not offered, int4: Hopper" in printed
    assert f"{table.levels['fp8'].ms:.4g}" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required"),
        (["roofline", "--model", "flux", "--hardware", "h201"], "did you mean 'h20"),
        (["measure", "--model", "sd3", "--levels", "fp32,w8a8"], "w8a8 is simulated"),
    ],
)
def test_the_process_ends_with_status_2(arguments: list[str], message: str) -> None:
    command = [sys.executable, "-m", "tmpdiff_bench.costs", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert message in done.stderr


def test_roofline_and_measurement_stand_side_by_side() -> None:
    levels = {"native:bf16": Cost(100.0), "native:fp8": Cost(75.0), "native:w8a8": Cost(80.0)}
    roofline = load_costs("roofline-flux-h200-1024")
    table = CostTable("measured-x", "measured", roofline.model, "NVIDIA H200", levels)
    text = comparison_text(table, roofline)
    bound = roofline.levels["fp8"].ms
    row = next(line.split() for line in text.splitlines() if line.startswith("native:fp8"))
    speedup = roofline.levels["bf16"].ms / bound
    assert row[1:] == [f"{bound:.4g}", "75", f"{bound / 75:.0%}", f"{speedup:.2f}x", "1.33x"]
    other = CostTable("measured-y", "measured", "sd3 (embedded)", "a CPU", levels)
    with pytest.raises(UsageError, match="only tables of one model"):
        comparison_text(other, roofline)


@pytest.mark.parametrize("command", ["roofline --hardware h200", "measure --levels a,b"])
def test_a_folder_that_can_not_be_written_is_known_first(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as ended:
        run(main, [*command.split(), "--model", "sd3", "--out", str(tmp_path / "file" / "x")])
    assert ended.value.code == 2
    assert "file is no folder that can be written to" in capsys.readouterr().err


def test_what_can_not_be_loaded_is_known_after_one_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that holds all levels comes first, and alone."""
    started = []

    class Refusing(Clockwork):
        def __init__(self, subject: Subject) -> None:
            super().__init__(subject)
            started.append(subject.levels)

        def wait(self) -> dict[str, Any]:
            raise UsageError("level native:nvfp4 can't run")

    monkeypatch.setattr(measuring, "Worker", Refusing)
    with pytest.raises(UsageError, match="native:nvfp4"):
        measure(SUBJECT, repeats=6)
    assert started == [SUBJECT.levels]


@pytest.mark.parametrize("device", ["nonsense", "xpu:7"])
def test_true_size_denoisers_name_an_absent_device(device: str) -> None:
    subject = Subject("sd3", ("native:bf16",), weights="random", device=device, resolution=64)
    with pytest.raises(UsageError, match=f"device '{device}' is not available here"):
        TrueSize(architecture("sd3"), subject)
