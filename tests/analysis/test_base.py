"""Scripts: what they declare, and the provenance beside what they write."""

from __future__ import annotations

import hashlib
import importlib
import json
from pathlib import Path

import pandas as pd
import pytest

from analysis.base import FigureFile, Made, Reports, Script, TableFile
from analysis.findings import RULES
from analysis.page import SECTIONS
from analysis.provenance import ROOT
from analysis.registry import FIGURES, NAMES, TABLES
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.report.tables import Table

FRAME = pd.DataFrame({"model": ["sd3", "flux"], "error": [0.1, 0.2]})
TABLE = Table("errors", "Errors", FRAME, FRAME.astype(str), "How to read it.")


def script(*outputs: TableFile | FigureFile, made: Made = TABLE) -> Script:
    return Script("costs", lambda _: [made], inputs=("in/*.json",), outputs=outputs)


@pytest.fixture
def reports(tmp_path: Path) -> Reports:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "manifest.json").write_text('{"key": "abc", "weights_digest": "def"}')
    return Reports(tmp_path)


def test_provenance_has_the_digests_of_what_was_read_and_written(reports: Reports) -> None:
    script(TableFile("errors", ("model",))).run(reports)
    origin = json.loads((reports.folder / "tables" / "errors.prov.json").read_text())
    for name, digest in (origin["inputs"] | origin["outputs"]).items():
        path = reports.folder / name if not name.startswith("analysis/") else ROOT / name
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    assert set(origin["inputs"]) == {"in/manifest.json", "analysis/costs.py"}
    assert set(origin["outputs"]) == {f"tables/errors{end}" for end in (".csv", ".md", ".tex")}
    assert origin["leads_to"] == [
        {"input": "in/manifest.json", "key": "abc", "weights_digest": "def"}
    ]
    assert str(reports.folder) not in json.dumps(origin)  # no path of this machine


def test_a_table_read_again_is_the_same(reports: Reports) -> None:
    script(TableFile("errors", ("model",))).run(reports)
    pd.testing.assert_frame_equal(reports.table("errors"), FRAME)


def test_a_missing_input_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no in/\*\.json .*nox -s reproduce"):
        script(TableFile("errors", ("model",))).run(Reports(tmp_path))


def test_what_is_made_must_be_declared_and_the_other_way_round(reports: Reports) -> None:
    with pytest.raises(AssertionError, match="does not declare errors"):
        script(TableFile("others", ())).run(reports)
    with pytest.raises(AssertionError, match=r"did not make, figures/errors\.svg"):
        script(TableFile("errors", ()), FigureFile("errors")).run(reports)
    script(TableFile("errors", ()), FigureFile("of-a-model", optional=True)).run(reports)


def test_every_script_is_in_the_registry() -> None:
    modules = {path.stem for path in (ROOT / "analysis").glob("*.py")}
    found = {
        name for name in modules if hasattr(importlib.import_module(f"analysis.{name}"), "SCRIPT")
    }
    assert found == set(NAMES)


def test_every_output_has_its_place_on_the_page_and_one_maker() -> None:
    assert sorted(name for section in SECTIONS for name in section.tables) == sorted(
        table.name for table in TABLES
    )
    assert sorted(name for section in SECTIONS for name in section.figures) == sorted(
        figure.name for figure in FIGURES
    )
    assert set(RULES) <= {table.name for table in TABLES}
