"""Cost tables say what they are, refuse what can't be true, and survive a round trip."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tmpdiff_bench.costs import Cost, CostTable, load_costs, shipped
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.levels import LEVEL_NAMES
from tmpdiff_bench.plan import PrecisionPlan

SIMULATED = [name for name in LEVEL_NAMES if name != "fp32" and not name.startswith("native:")]


def measured(**changes: Any) -> CostTable:
    options: dict[str, Any] = {
        "name": "measured-sd3-here",
        "kind": "measured",
        "model": "sd3 (embedded, 3.6 M)",
        "device": "a processor",
        "levels": {"fp32": Cost(8.0, (7.5, 8.25)), "native:w8a8": Cost(5.0, (4.75, 5.5))},
        "switch": Cost(0.5, (-0.25, 1.0)),
        "setting": {"steps": 20, "guidance": 4.5, "note": "quiet"},
        "versions": {"torch": "2"},
    }
    return CostTable(**{**options, **changes})


def roofline() -> CostTable:
    return measured(
        name="roofline-flux-h200",
        kind="roofline",
        levels={"bf16": Cost(80.0), "w8a8": Cost(50.0)},
        switch=Cost(0.0),
        compute_bound={"bf16": 0.9, "w8a8": 0.8},
        refused={"w4a4": "int4: Hopper has no such mode"},
    )


@pytest.mark.parametrize("level", SIMULATED)
def test_a_simulated_level_has_no_place_in_a_measured_table(level: str) -> None:
    with pytest.raises(UsageError, match=f"{level.replace('+', '.')} is simulated"):
        measured(levels={"fp32": Cost(8.0), level: Cost(5.0)})
    content = json.loads(measured().to_json())
    content["levels"][level] = {"ms": 5.0, "interval": None}
    with pytest.raises(UsageError, match="is simulated"):
        CostTable.from_json(json.dumps(content))


def test_real_and_bounded_levels_are_told_apart() -> None:
    with pytest.raises(UsageError, match="can be measured, a roofline knows w8a8"):
        measured(kind="roofline", levels={"bf16": Cost(2.0), "native:w8a8": Cost(1.0)})
    with pytest.raises(UsageError, match="holds measured times: name native:w8a8"):
        measured().step_costs(["fp32", "w8a8"], 4)
    with pytest.raises(UsageError, match="it knows w8a8, not native:w8a8"):
        roofline().step_costs(["native:w8a8"], 4)


def test_step_costs_are_a_row_per_step() -> None:
    costs = measured().step_costs(["native:w8a8", "fp32"], 3)
    np.testing.assert_array_equal(costs, [[5.0, 8.0]] * 3)
    assert costs.dtype == np.float64


@given(st.lists(st.sampled_from(["fp32", "native:w8a8"]), min_size=1, max_size=30))
def test_a_plan_costs_its_steps_and_switches(levels: list[str]) -> None:
    plan, table = PrecisionPlan(tuple(levels)), measured()
    runs = len(str(plan).split())
    steps = table.step_costs(levels, 1).sum()
    assert table.cost(plan) == pytest.approx(steps + 0.5 * (runs - 1))
    assert table.speedup(plan) == pytest.approx(8.0 * len(levels) / table.cost(plan))


def test_a_switch_that_seems_to_save_time_costs_nothing() -> None:
    plan = PrecisionPlan(("fp32", "native:w8a8"))
    assert measured(switch=Cost(-0.5, (-1.0, 0.5))).cost(plan) == 13.0


@pytest.mark.parametrize(
    ("level", "message"),
    [
        ("w4a4", "w4a4 does not run on a processor: int4: Hopper has no such mode"),
        ("w8a9", "unknown level of cost table roofline-flux-h200 'w8a9': did you mean 'w8a8'?"),
    ],
)
def test_absent_levels_are_explained(level: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        roofline().step_costs(["bf16", level], 4)
    assert str(caught.value).startswith(message)
    with pytest.raises(UsageError):
        roofline().cost(PrecisionPlan.uniform(level, 2))


@pytest.mark.parametrize("table", [measured(), roofline()], ids=lambda table: table.kind)
def test_json_and_files_round_trip(table: CostTable, tmp_path: Path) -> None:
    assert CostTable.from_json(table.to_json()) == table
    assert CostTable.from_json(table.to_json()).to_json() == table.to_json()
    path = table.save(tmp_path / "new" / "costs")
    assert path.name == f"{table.name}.json"
    assert load_costs(path) == load_costs(str(path)) == table


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("schema_version", 2, "schema version 2 is not 1"),
        ("schema_version", True, "schema version True"),
        ("kind", "guessed", "unknown kind of cost table 'guessed'"),
        ("name", "../secret", "bad name '../secret'"),
        ("unit", "s", "costs are in ms, not in 's'"),
        ("model", 3, "'model' is text"),
        ("levels", {}, "has no levels"),
        ("levels", [], "'levels' can't be"),
        ("levels", {"fp32": 3}, "'levels' can't be"),
        ("levels", {"fp32": {"ms": 3}}, "'ms' and 'interval'"),
        ("levels", {"fp32": {"ms": -3, "interval": None}}, "can't cost -3 ms"),
        ("levels", {"fp32": {"ms": float("nan"), "interval": None}}, "NaN is no number"),
        ("levels", {"fp32": {"ms": True, "interval": None}}, "is no cost"),
        ("levels", {"fp32": {"ms": 10**400, "interval": None}}, "is no cost"),
        ("levels", {"fp32": {"ms": "3", "interval": None}}, "is no cost"),
        ("levels", {"fp32": {"ms": 3, "interval": [4, 5]}}, "is no cost"),
        ("levels", {"fp32": {"ms": 3, "interval": [1]}}, "two numbers"),
        ("switch", 3, "a cost is an object"),
        ("setting", {"steps": None}, "'setting' can't be"),
        ("versions", {"torch": 2}, "'versions' can't be"),
        ("more", 1, "has the fields"),
    ],
)
def test_other_json_is_refused(field: str, value: object, message: str) -> None:
    content = {**json.loads(measured().to_json()), field: value}
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        CostTable.from_json(json.dumps(content))


@pytest.mark.parametrize("text", ["", "[]", "nonsense", '{"name": 1, "name": 2}', "[" * 100_000])
def test_text_that_is_no_table_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="cost table"):
        CostTable.from_json(text)


def test_every_missing_field_is_noticed() -> None:
    content = json.loads(measured().to_json())
    for field in content:
        rest = {k: v for k, v in content.items() if k != field}
        with pytest.raises(UsageError, match="has the fields"):
            CostTable.from_json(json.dumps(rest))


def test_files_that_are_not_there_are_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown cost table 'roofline-flux-h300-1024': did you"):
        load_costs("roofline-flux-h300-1024")
    with pytest.raises(UsageError, match="can't be read"):
        load_costs(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(UsageError, match=r"bad\.json: a cost table's JSON"):
        load_costs(tmp_path / "bad.json")


@pytest.mark.parametrize("name", shipped())
def test_shipped_tables_are_what_their_names_say(name: str) -> None:
    table = load_costs(name)
    assert table.name == name
    assert name.startswith(table.kind)
    assert table.speedup(PrecisionPlan.uniform(table.reference, 7)) == pytest.approx(1.0)


def test_tables_need_no_torch() -> None:
    program = "import sys, tmpdiff_bench.costs; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "tmpdiff_bench.costs.table" in loaded
    assert not {"torch", "diffusers", "scipy", "pandas"} & set(loaded)
