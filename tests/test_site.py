"""The documentation in a real browser, where `nox -s docs` has built it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver

SITE = Path(__file__).parents[1] / "build" / "docs"
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))
BROKEN = "return [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)"


@pytest.mark.skipif(not PAGES, reason="nox -s docs builds the site")
@pytest.mark.parametrize("width", [400, 1400])
def test_pages_are_whole(browser: webdriver.Chrome, width: int) -> None:
    """Images are there, nothing is told on the console, and no page is wider than its window."""
    tab: Any = browser
    metrics = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 500}
    tab.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    tab.get_log("browser")
    for page in PAGES:
        tab.get((SITE / page).as_uri())
        assert tab.execute_script(BROKEN) == [], page
        wide = tab.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width, page
    assert [entry for entry in tab.get_log("browser") if entry["level"] == "SEVERE"] == []
