"""Rooflines: hand formulas, monotone in hardware and size, sheets with sources, current tables."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tmpdiff_bench.costs.__main__ import MODELS
from tmpdiff_bench.costs.architectures import ARCHITECTURES
from tmpdiff_bench.costs.counting import Operation
from tmpdiff_bench.costs.hardware import Hardware, hardware_names, load_hardware
from tmpdiff_bench.costs.roofline import (
    DEFAULT_LEVELS,
    compute_format,
    model_operations,
    roofline_table,
    step_time,
)
from tmpdiff_bench.costs.table import load_costs, shipped
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.levels import Level

# a linear layer of 6 rows, 100 inputs and 40 outputs with a bias
LINEAR = Operation("a", "linear", 48_000, 600, 4_040, 240, 6, 100, 40, True, True)
ATTENTION = Operation("", "attention", 9_000, 300, 0, 100)
SHEET = """
name = "x"
memory_gb = { value = 1, source = "s" }
bandwidth_gb_s = { value = 1, source = "s" }
[sources]
s = "a document"
[peak]
bf16 = { value = 1, source = "s" }
[absent]
"""
CHIP = Hardware(
    "chip",
    "a chip",
    1,
    bandwidth=1000.0,
    peak={"fp32": 500.0, "bf16": 1000.0, "int8": 2000.0, "int4": 4000.0, "fp8": 2000.0},
    absent={},
    sources={},
)


def test_a_layer_takes_the_longer_of_arithmetic_and_memory() -> None:
    time = step_time([LINEAR], Level.parse("bf16"), CHIP)
    assert time.ms == pytest.approx(1e3 * 48_000 / 1000)
    assert (time.compute_bound, time.weight_bytes) == (1.0, 2 * 4_040)
    slow = replace(CHIP, bandwidth=1.0)
    time = step_time([LINEAR], Level.parse("bf16"), slow)
    assert time.ms == pytest.approx(1e3 * 2 * (600 + 4_040 + 240))
    assert time.compute_bound == 0.0


def test_a_quantized_layer_has_a_pass_over_its_input_first() -> None:
    """Reads 600 elements of 2 bytes, writes them in 1; the product runs at the rate of int8."""
    level = Level.parse("w8a8")
    assert step_time([LINEAR], level, CHIP).ms == pytest.approx(1e3 * (24 + 1.8))
    again = replace(LINEAR, first_use=False)
    assert step_time([again], level, CHIP).ms == pytest.approx(1e3 * 24)
    slow = replace(CHIP, bandwidth=1.0)
    assert step_time([LINEAR], level, slow).ms == pytest.approx(
        1e3 * (600 + 4_040 + 2 * 240 + 3 * 600)
    )


def test_four_bit_weights_carry_a_scale_per_group() -> None:
    time = step_time([LINEAR], Level.parse("w4a8"), replace(CHIP, bandwidth=1.0))
    assert time.weight_bytes == pytest.approx(4_040 * (4 + 16 / 64) / 8)


def test_a_low_rank_branch_adds_its_two_factors() -> None:
    level, slow = Level.parse("w4a4+lr2"), replace(CHIP, bandwidth=1.0)
    plain = Level.parse("w4a4")
    flops, factors = 2 * 6 * 2 * (100 + 40), 2 * (100 + 40)
    quick = replace(CHIP, bandwidth=1e9)
    extra = step_time([LINEAR], level, quick).ms - step_time([LINEAR], plain, quick).ms
    assert extra == pytest.approx(1e3 * flops / 1000, rel=1e-3)
    extra = step_time([LINEAR], level, slow).ms - step_time([LINEAR], plain, slow).ms
    assert extra == pytest.approx(1e3 * (2 * factors + 2 * 2 * 6 * 2))


@pytest.mark.parametrize("level", ["w8a16", "w4a16"])
def test_weight_only_levels_save_memory_traffic_alone(level: str) -> None:
    slow, wide = replace(CHIP, bandwidth=1.0), Level.parse("bf16")
    narrow = Level.parse(level)
    assert step_time([LINEAR], narrow, CHIP).ms == step_time([LINEAR], wide, CHIP).ms
    bits = {"w8a16": 8, "w4a16": 4 + 16 / 64}[level]
    saved = step_time([LINEAR], wide, slow).ms - step_time([LINEAR], narrow, slow).ms
    assert saved == pytest.approx(1e3 * 4_040 * (16 - bits) / 8)


def test_what_levels_leave_stays_at_bf16() -> None:
    for name in ("bf16", "w8a8", "w4a4"):
        assert step_time([ATTENTION], Level.parse(name), CHIP).ms == pytest.approx(9_000)
    assert step_time([ATTENTION], Level.parse("fp32"), CHIP).ms == pytest.approx(18_000)


@pytest.mark.parametrize(
    ("level", "format"),
    [
        ("fp32", "fp32"),
        ("bf16", "bf16"),
        ("w8a8", "int8"),
        ("w4a8", "int8"),
        ("w4a4", "int4"),
        ("w4a16", "bf16"),
        ("fp16", "fp16"),
        ("nvfp4+lr32", "nvfp4"),
        ("mxfp6", "mxfp6"),
    ],
)
def test_products_run_in_the_wider_format(level: str, format: str) -> None:
    assert compute_format(Level.parse(level)) == format


@settings(deadline=None, max_examples=10)
@given(st.sampled_from(list(ARCHITECTURES)), st.floats(1, 10), st.sampled_from(DEFAULT_LEVELS))
def test_better_hardware_is_never_slower(model: str, factor: float, name: str) -> None:
    operations, level = model_operations(model, 512)[::9], Level.parse(name)
    chip = load_hardware("a100")
    if compute_format(level) not in chip.peak:
        return
    before = step_time(operations, level, chip).ms
    wide = replace(chip, bandwidth=factor * chip.bandwidth)
    fast = replace(chip, peak={k: factor * v for k, v in chip.peak.items()})
    both = replace(fast, bandwidth=wide.bandwidth)
    assert step_time(operations, level, wide).ms <= before * (1 + 1e-12)
    assert step_time(operations, level, fast).ms <= before * (1 + 1e-12)
    assert step_time(operations, level, both).ms == pytest.approx(before / factor)


@pytest.mark.parametrize("model", ARCHITECTURES)
def test_larger_images_are_never_faster(model: str) -> None:
    chip = load_hardware("rtx4090")
    tables = [
        roofline_table(model, chip, resolution=side, levels=["w8a8", "w4a4"])
        for side in (512, 1024)
    ]
    for level in ("bf16", "w8a8", "w4a4"):
        times = [table.levels[level].ms for table in tables]
        assert times == sorted(times)


@pytest.mark.parametrize("name", hardware_names())
def test_sheets_account_for_every_format(name: str) -> None:
    sheet = load_hardware(name)
    formats = {"int8", "int4", "fp8", "mxfp8", "mxfp6", "mxfp4", "nvfp4"}
    assert formats <= {*sheet.peak, *sheet.absent}
    assert not set(sheet.peak) & set(sheet.absent)
    assert {"bf16", "fp16", "tf32"} <= set(sheet.peak)
    for low in formats & set(sheet.peak):  # tensor cores trade bits for rate by powers of two
        doublings = math.log2(sheet.peak[low] / sheet.peak["bf16"])
        assert round(doublings) in (1, 2, 3)
        assert doublings == pytest.approx(round(doublings), abs=0.01)


def test_a_missing_format_is_not_offered_and_says_why() -> None:
    table = roofline_table("sd3", load_hardware("h200"), resolution=512, levels=["w8a8", "w4a4"])
    assert list(table.levels) == ["bf16", "w8a8"]
    with pytest.raises(UsageError, match="w4a4 does not run on H200 SXM: int4: Hopper's tensor"):
        table.step_costs(["bf16", "w4a4"], 20)
    with pytest.raises(UsageError, match="H100 SXM runs none of these levels: w4a4: int4: Hopper"):
        roofline_table("sd3", load_hardware("h100"), resolution=512, levels=["w4a4"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has the fields"),
        ("name = ", "can't be read"),
        ('name = "x"\nmemory_gb = 3\nbandwidth_gb_s = 4\n[sources]\n[peak]\n[absent]\n', "needs a"),
        (SHEET.replace("memory_gb = { value = 1", 'memory_gb = { value = "1"'), "needs a positive"),
        (SHEET.replace("memory_gb = { value = 1", "memory_gb = { value = inf"), "needs a positive"),
        (SHEET.replace("memory_gb = { value = 1", "memory_gb = { value = true"), "needs a posit"),
        (SHEET.replace("bf16 =", "bf15 ="), "unknown format 'bf15': did you mean 'bf16'"),
        (SHEET.replace("bf16 =", "fp16 ="), "no rate for bf16"),
        (SHEET.replace("[absent]", "") + "absent = 3\n", "has the fields"),
        ("peak = 3\nabsent = 3\n" + SHEET.partition("[peak]")[0], "peak is a table, not 3"),
    ],
)
def test_a_sheet_without_sources_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        load_hardware(str(path))


def test_a_sheet_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(SHEET)
    table = roofline_table("sd3", load_hardware(str(path)), resolution=512, levels=DEFAULT_LEVELS)
    assert (table.name, table.device) == ("roofline-sd3-mine-512", "x")
    assert set(table.levels) == {"bf16", "w8a16", "w4a16"}


def test_chosen_levels_do_not_replace_the_shipped_table() -> None:
    chip = load_hardware("b200")
    table = roofline_table("sd3", chip, resolution=1024, levels=["fp8", "nvfp4+lr32"])
    assert table.name == "roofline-sd3-b200-1024-fp8-nvfp4-lr32"
    assert table.name not in shipped()


def test_unknown_hardware_has_a_nearest_name() -> None:
    with pytest.raises(UsageError, match="unknown hardware 'h2000': did you mean 'h200'"):
        load_hardware("h2000")


@pytest.mark.parametrize("model", ARCHITECTURES)
@pytest.mark.parametrize("name", hardware_names())
def test_shipped_tables_are_up_to_date(model: str, name: str) -> None:
    """Rebuilt by `python -m tmpdiff_bench.costs roofline --model all --hardware all`."""
    table = roofline_table(model, load_hardware(name), resolution=1024, levels=DEFAULT_LEVELS)
    assert table.to_json() == load_costs(table.name).to_json()


def test_the_command_knows_every_architecture() -> None:
    assert set(MODELS) == set(ARCHITECTURES)


def test_no_shipped_roofline_is_orphaned() -> None:
    wanted = {f"roofline-{m}-{h}-1024" for m in ARCHITECTURES for h in hardware_names()}
    assert {name for name in shipped() if name.startswith("roofline")} == wanted
