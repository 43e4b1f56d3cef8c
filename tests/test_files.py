"""The data folder is found in an installed package and in a checkout."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from tmpdiff_bench import files
from tmpdiff_bench.errors import UsageError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty package folder that `files` believes to be in."""
    folder = tmp_path / "site" / "tmpdiff_bench"
    folder.mkdir(parents=True)
    monkeypatch.setattr(files, "__file__", str(folder / "files.py"))
    return folder


def test_a_checkout_uses_its_top_level_data() -> None:
    assert files.data_folder() == ROOT / "data"


def test_packaged_data_come_first(package: Path) -> None:
    (package.parent / "data").mkdir()
    assert files.data_folder() == package.parent / "data"
    (package / "data").mkdir()
    assert files.data_folder() == package / "data"


def test_missing_data_are_one_clear_error(package: Path) -> None:
    (package / "data").write_text("a file, not a folder")
    with pytest.raises(UsageError, match="neither") as caught:
        files.data_folder()
    assert str(package / "data") in str(caught.value)
    assert str(package.parent / "data") in str(caught.value)


def test_the_wheel_maps_data_into_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert set(wheel["only-include"]) == {"tmpdiff_bench", "data"}
    assert wheel["sources"] == {"data": "tmpdiff_bench/data"}
