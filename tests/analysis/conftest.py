"""A reports folder made of made-up results, once for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.base import Reports
from analysis.page import write_page
from analysis.registry import SCRIPTS
from tests.analysis.made_up import suite_results, write_summary
from tmpdiff_bench.suite import SuiteResults

# they run a model, or open a recording
NEED_A_MODEL = ("levels", "predictors", "allocators", "allocators_live")


@pytest.fixture(scope="session")
def made_up_reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All tables and figures that need no model, and the page."""
    return make_reports(tmp_path_factory.mktemp("reports"), suite_results())


def make_reports(folder: Path, results: SuiteResults) -> Path:
    """All that needs no model, of these results."""
    results.save(folder / "suite-v1")
    write_summary(folder)
    for script in SCRIPTS:
        if script.name not in NEED_A_MODEL:
            script.run(Reports(folder, quick=True))
    write_page(folder)
    return folder
