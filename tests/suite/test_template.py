"""The template of an outside allocator keeps the contract, and the suite scores it."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from tests.suite.conftest import TINY
from tmpdiff_bench.suite.rules import load_allocators
from tmpdiff_bench.suite.runner import run_suite

TEMPLATE = Path(__file__).parents[2] / "docs" / "templates" / "allocator"
NAME = "my_allocator:raise_worst"


@pytest.fixture
def template(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder as the working folder, where `--allocator` looks for modules."""
    monkeypatch.chdir(TEMPLATE)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return TEMPLATE


def test_the_suite_scores_the_template(toys: None, template: Path, tmp_path: Path) -> None:
    contributed = load_allocators([NAME])  # runs the contract check
    table = run_suite(TINY, tmp_path / "cells", contributed=contributed).allocations
    own = table[table["allocator"] == NAME]
    assert len(own) == len(TINY.tasks())
    assert (own["status"] == "ok").all()
    best = table[table["allocator"] == "exhaustive"].set_index("task")["error"]
    assert (own.set_index("task")["error"] >= best * (1 - 1e-9)).all()


def test_the_template_is_as_short_as_it_says(template: Path) -> None:
    text = (template / "my_allocator" / "__init__.py").read_text()
    assert len(text.splitlines()) <= 30
    project = tomllib.loads((template / "pyproject.toml").read_text())["project"]
    assert project["name"] == NAME.partition(":")[0]
    assert NAME in (template / "README.md").read_text()
