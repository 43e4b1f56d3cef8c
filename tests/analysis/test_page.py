"""The page in a real browser, and what it shows of tables."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from selenium import webdriver

from analysis.page import gaps, page, read_markdown
from tmpdiff_bench.report.tables import Table


def set_width(browser: webdriver.Chrome, width: int) -> None:
    """Of what the page is laid out in: a headless window itself has a least width of 500 px."""
    metrics = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_is_whole_in_a_browser(
    browser: webdriver.Chrome, made_up_reports: Path, width: int
) -> None:
    set_width(browser, width)
    browser.get((made_up_reports / "index.html").as_uri())
    run: Any = browser.execute_script
    assert run("return window.innerWidth") == width
    run("document.querySelectorAll('details').forEach(d => d.open = true)")
    tab: Any = browser  # selenium annotates a part of its methods
    assert tab.get_log("browser") == []
    images = run("return [...document.images].map(i => [i.src, i.naturalWidth, i.alt])")
    assert len(images) >= 8
    assert [source for source, natural, alt in images if natural == 0 or not alt] == []
    assert run("return document.documentElement.scrollWidth") <= width
    # what is wider than the window scrolls within its own box
    outside = """return [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll')
        && e.getBoundingClientRect().right > window.innerWidth + 1).map(e => e.outerHTML)"""
    assert run(outside) == []
    small = (
        "return [...document.querySelectorAll('p, li, td')].map(e => getComputedStyle(e).fontSize)"
    )
    assert min(float(size.removesuffix("px")) for size in run(small)) >= 12
    if width == 400:
        boxes = "return [...document.querySelectorAll('.scroll')]"
        assert run(f"{boxes}.some(e => e.scrollWidth > e.clientWidth)")


def test_the_page_loads_nothing_from_outside(made_up_reports: Path) -> None:
    html = (made_up_reports / "index.html").read_text(encoding="utf-8")
    loaded = re.findall(r'(?:src|href)="([^"]+)"', re.sub(r"<a [^>]*>", "", html))
    assert [name for name in loaded if name.startswith(("http", "//"))] == []
    linked = {name for name in re.findall(r'(?:src|href)="([^"#:]+)"', html) if name != "data"}
    assert [name for name in linked if not (made_up_reports / name).is_file()] == []


def test_tables_have_captions_and_headers(made_up_reports: Path) -> None:
    html = (made_up_reports / "index.html").read_text(encoding="utf-8")
    tables = re.findall(r"<table>.*?</table>", html, flags=re.DOTALL)
    assert len(tables) >= 8
    for table in tables:
        assert "<caption>" in table
        assert 'scope="col"' in table
        assert 'scope="row"' in table


def test_findings_come_first_and_gaps_are_named(made_up_reports: Path, tmp_path: Path) -> None:
    html = page(made_up_reports)
    assert html.index('id="findings"') < html.index("<table>")
    assert "tables/levels.csv" in html  # it needs a model, so was not made
    assert "tables/regret.csv" not in gaps(made_up_reports)
    assert "Not there yet" in page(tmp_path)


def test_what_is_said_in_tables_is_escaped(made_up_reports: Path, tmp_path: Path) -> None:
    for folder in ("tables", "figures", "suite-v1"):
        shutil.copytree(made_up_reports / folder, tmp_path / folder)
    path = tmp_path / "tables" / "drift.md"
    path.write_text(path.read_text(encoding="utf-8").replace("batch 1", "<script>"))
    assert "<script>" not in page(tmp_path)


def test_markdown_is_read_as_it_was_written() -> None:
    text = pd.DataFrame({"a": ["x|y", ""], "b": ["1", "2 | 3"]})
    table = Table("t", "T", text, text, "C | D")
    head, rows = read_markdown(f"T. C | D\n\n{table.to_markdown()}")
    assert head == ["a", "b"]
    assert rows == text.to_numpy().tolist()
