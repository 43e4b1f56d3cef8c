"""CITATION.cff is valid, and says what pyproject.toml says."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from cffconvert import Citation

ROOT = Path(__file__).parents[1]
CITATION = (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_it_follows_the_schema() -> None:
    Citation(CITATION).validate()


def test_the_schema_refuses_what_it_does_not_know() -> None:
    with pytest.raises(Exception, match="licence"):
        Citation(CITATION.replace("license:", "licence:")).validate()


def test_version_and_license_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"\nversion: {project['version']}\n" in CITATION
    assert f"\nlicense: {project['license']}\n" in CITATION
    assert f"\ntitle: {project['name']}\n" in CITATION


def test_the_paper_is_cited() -> None:
    assert "TMPDiff: Temporal Mixed-Precision for Diffusion Models" in CITATION
    assert "https://arxiv.org/abs/2603.14062" in CITATION
