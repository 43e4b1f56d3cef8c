"""Result folders: what is written is read again, and nothing else is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.suite.conftest import TINY
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.suite import SuiteResults, load_results, picture_name, runner
from tmpdiff_bench.suite.results import COLUMNS

DOCS = Path(__file__).parents[2] / "docs" / "suite.md"


@pytest.fixture
def folder(toy_results: SuiteResults, tmp_path: Path) -> Path:
    toy_results.save(tmp_path)
    return tmp_path


def test_what_is_saved_is_loaded(toy_results: SuiteResults, folder: Path) -> None:
    found = load_results(folder)
    for name in COLUMNS:
        pd.testing.assert_frame_equal(
            getattr(found, name), getattr(toy_results, name), check_dtype=False
        )
    assert {k: v.tobytes() for k, v in found.pictures.items()} == {
        k: v.tobytes() for k, v in toy_results.pictures.items()
    }
    found.check_comparable(toy_results)


def test_every_chosen_plan_has_pictures(toy_results: SuiteResults) -> None:
    ran = toy_results.allocations[toy_results.allocations["status"] == "ok"]
    for row in ran.itertuples():
        name = picture_name(row.model, row.prompt_set, row.steps, row.plan)
        assert toy_results.pictures[name].shape == (2, 64, 64, 3)


def test_pictures_may_be_left_out(toy_results: SuiteResults, folder: Path) -> None:
    (folder / "pictures.safetensors").unlink()
    found = load_results(folder)
    assert found.pictures == {}
    assert len(found.scores) == len(toy_results.scores)


def test_datasets_reads_the_tables(folder: Path) -> None:
    from datasets import load_dataset

    rows = load_dataset("parquet", data_files=str(folder / "scores.parquet"), split="train")
    assert tuple(rows.column_names) == COLUMNS["scores"]


def damage(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return apply


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "manifest.json").unlink(), "holds no results"),
        (lambda f: (f / "manifest.json").write_text("{"), "can't be read"),
        (damage(lambda m: m.update(suite_version=2)), "suite version 2, this library reads 1"),
        (damage(lambda m: m.update(schema_version=9)), "schema version 9"),
        (damage(lambda m: m.pop("files")), "not a whole folder of results"),
        (damage(lambda m: m["files"].update({"../x": "0"})), "no plain file"),
        (lambda f: (f / "scores.parquet").write_bytes(b"x"), "is damaged"),
        (
            lambda f: (f / "pictures.safetensors").write_bytes(b"x"),
            "pictures.safetensors is damaged",
        ),
        (lambda f: (f / "drift.parquet").unlink(), "drift.parquet can't be read"),
    ],
)
def test_other_folders_are_refused(
    folder: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(folder)
    with pytest.raises(UsageError, match=re.escape(message)):
        load_results(folder)


@pytest.mark.parametrize("what", ["model sd3", "algorithm"])
def test_results_of_other_models_or_noise_are_not_compared(
    toy_results: SuiteResults, what: str
) -> None:
    mine = toy_results.manifest["digests"]
    older = {name: digest for name, digest in mine.items() if name != what}
    for others in ({**mine, what: "1"}, older):
        other = SuiteResults(**{**vars(toy_results), "manifest": {"digests": others}})
        with pytest.raises(UsageError, match=f"different {what} are not comparable"):
            toy_results.check_comparable(other)


def test_other_arguments_of_calls_are_other_models(monkeypatch: pytest.MonkeyPatch) -> None:
    before = runner.digests(TINY, TINY.tasks(), {})
    monkeypatch.setattr(runner, "call_defaults", lambda model: {"guidance_scale": 1.0})
    after = runner.digests(TINY, TINY.tasks(), {})
    assert {name for name in before if before[name] != after[name]} == {"model sd3"}


@pytest.mark.parametrize("table", list(COLUMNS))
def test_docs_name_every_column(table: str) -> None:
    text = DOCS.read_text(encoding="utf-8")
    words = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]*)`", text))))
    assert set(COLUMNS[table]) <= words
