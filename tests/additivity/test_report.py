"""The report folder: its files, its words, and whose folder it may write into."""

from __future__ import annotations

import base64
import json
import math
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from tmpdiff_bench.additivity import AdditivityReport
from tmpdiff_bench.additivity.records import AdditivityTest, Score, Verdict
from tmpdiff_bench.additivity.report import check_folder, summary_text, write_report
from tmpdiff_bench.additivity.tables import findings, headline, tables
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.report.tables import Table, interval
from tmpdiff_bench.statistics import Interval
from tmpdiff_bench.trajectory import Recording

VOID = {"meta", "img", "br", "link", "input", "hr"}
FIGURES = (
    "predicted-against-measured",
    "sensitivity",
    "gram-matrices",
    "residuals",
    "image-strip",
)


class Page(HTMLParser):
    """Collects images, text and addresses; fails on tags that do not nest."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self._open: list[str] = []
        self.feed(content)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self._open.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"


@pytest.fixture(scope="module")
def written(
    report: AdditivityReport, recording: Recording, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return replace(report, recording=recording).save(tmp_path_factory.mktemp("report"))


def test_page_is_whole_and_loads_nothing(written: Path, recording: Recording) -> None:
    page = Page(written.read_text(encoding="utf-8"))
    assert len(page.images) == len(FIGURES)
    for image in page.images:
        head, _, content = (image["src"] or "").partition(",")
        assert head in ("data:image/svg+xml;base64", "data:image/png;base64")
        assert len(base64.b64decode(content)) > 1000
        assert image["alt"]
    assert not page.tags & {"script", "link", "iframe"}
    loaded = [address for address in page.addresses if not address.startswith("data:")]
    assert loaded == ["https://arxiv.org/abs/2603.14062"]  # a link, which loads nothing
    # a prompt is text, whatever it holds
    assert any(recording.prompts["p0"] in str(image["alt"]) for image in page.images)


def test_page_tells_what_ran_and_what_came_out(written: Path, report: AdditivityReport) -> None:
    text = " ".join(Page(written.read_text(encoding="utf-8")).text.split())
    for told in (
        report.manifest["title"],
        report.manifest["workload"]["weights_digest"],
        "samples 12: 6 prompts x 2 seeds",
        "git commit 0123456",
        "2,000 NFE in 12 s",
        report.rule,
        report.warnings[0],
        *findings(report).values(),
    ):
        assert told in text


def test_files_are_there_and_readable(written: Path) -> None:
    out = written.parent
    found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    names = ("verdicts", "hypotheses", "design-free", "sensitivity")
    assert found == {
        "report.html",
        "summary.json",
        *(f"figures/{name}.{kind}" for name in FIGURES for kind in ("svg", "png")),
        *(f"tables/{name}.{kind}" for name in names for kind in ("csv", "md", "tex")),
    }
    for path in (out / "figures").iterdir():
        start = b"\x89PNG" if path.suffix == ".png" else b"<?xml"
        assert path.read_bytes().startswith(start)


def test_summary_is_finite_json(written: Path, report: AdditivityReport) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    summary = json.loads((written.parent / "summary.json").read_text(), parse_constant=refuse)
    assert summary["schema"] == "tmpdiff_bench.additivity.report/1"
    assert summary["levels"] == list(report.levels)
    assert len(summary["scores"]) == len(report.scores)


def test_csv_is_the_frame(written: Path, report: AdditivityReport) -> None:
    for table in tables(report):
        path = written.parent / "tables" / f"{table.name}.csv"
        read = pd.read_csv(path)
        for name in {"reason", "parameters"} & set(read):  # empty text is read as missing
            read[name] = read[name].astype(object).fillna("")
        assert_frame_equal(read, table.frame, check_dtype=False, check_exact=True)


def test_tables_for_readers_escape_what_would_break_them() -> None:
    frame = pd.DataFrame({"a": [1.0]})
    text = pd.DataFrame({"R² | share": ["10 % of x_1"]}, dtype=object)
    table = Table("name", "Title", frame, text)
    assert table.to_markdown() == "| R² \\| share |\n| --- |\n| 10 % of x_1 |\n"
    assert "R² | share \\\\" in table.to_latex()
    assert r"10 \% of x\_1 \\" in table.to_latex()


def test_same_report_same_bytes(
    written: Path, report: AdditivityReport, recording: Recording, tmp_path: Path
) -> None:
    replace(report, recording=recording).save(tmp_path)
    for path in written.parent.rglob("*.*"):
        assert (tmp_path / path.relative_to(written.parent)).read_bytes() == path.read_bytes(), path


def test_recording_without_pictures_has_no_strip(
    report: AdditivityReport, recording: Recording, tmp_path: Path
) -> None:
    bare = replace(recording, pictures={}, picture_rows=np.array([], dtype=np.int64))
    page = Page(write_report(replace(report, recording=bare), tmp_path).read_text(encoding="utf-8"))
    assert len(page.images) == len(FIGURES) - 1
    assert not (tmp_path / "figures" / "image-strip.svg").exists()


def test_folder_of_a_report_is_replaced(written: Path, tmp_path: Path) -> None:
    check_folder(written.parent)
    check_folder(tmp_path)
    check_folder(tmp_path / "new")
    (tmp_path / "recording").mkdir()
    (tmp_path / ".hidden").touch()
    check_folder(tmp_path)


@pytest.mark.parametrize("name", ["thesis.tex", "report.html", "summary.json", "tables"])
def test_folder_of_the_user_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(UsageError, match=f"holds '{name}', which no report of ours wrote"):
        check_folder(tmp_path)
    with pytest.raises(UsageError, match="is a file"):
        check_folder(tmp_path / name)


def _with_sum(report: AdditivityReport, test: AdditivityTest | None) -> AdditivityReport:
    """The report with the sum's test at w4a4 replaced."""

    def change(score: Score) -> Score:
        if (score.level, score.predictor) != ("w4a4", "sum"):
            return score
        verdict = test.verdict if test else "not defined"
        return replace(
            score,
            test=test,
            verdict=verdict,
            reason="too few plans",
            r2_common=test.r2_plans if test else math.nan,
        )

    return replace(report, scores=tuple(map(change, report.scores)))


@pytest.mark.parametrize(
    ("ratio", "verdict", "r2", "words"),
    [
        (
            Interval(0.48, 0.43, 0.53),
            "refuted",
            -3.5,
            "The sum of single-step errors overestimates joint errors by a factor of "
            "2.08 [1.89, 2.33] (refuted)",
        ),
        (
            Interval(1.5, 1.4, 1.6),
            "refuted",
            0.5,
            "underestimates joint errors by a factor of 1.50 [1.40, 1.60] (refuted)",
        ),
        (
            Interval(1.0, 0.95, 1.05),
            "refuted",
            0.5,
            "misses the range of joint errors: joint/predicted is 0.70 [0.60, 0.80] for small "
            "predictions and 1.40 [1.30, 1.50] for large ones (refuted)",
        ),
        (
            Interval(1.08, 0.97, 1.2),
            "undecided",
            0.5,
            "is not certainly inside or outside the margin of ±10 %, joint/predicted being "
            "1.08 [0.97, 1.20] (undecided)",
        ),
        (
            Interval(1.01, 0.99, 1.03),
            "undecided",
            -0.2,
            "explains none of the differences between plans (R² over plans -0.200), "
            "joint/predicted being 1.01 [0.99, 1.03] (undecided)",
        ),
        (
            Interval(1.01, 0.99, 1.03),
            "supported",
            0.98,
            "predicts joint errors within ±10 %, joint/predicted being 1.01 [0.99, 1.03] "
            "(supported)",
        ),
    ],
)
def test_findings_follow_the_numbers(
    report: AdditivityReport, ratio: Interval, verdict: Verdict, r2: float, words: str
) -> None:
    test = report.scores[0].test
    assert test is not None
    test = replace(test, ratio=ratio, verdict=verdict, r2_plans=r2)
    changed = _with_sum(report, test)
    assert words in findings(changed)["w4a4"]
    assert f"{verdict} at w4a4" in headline(changed)[0] or "w8a8 and w4a4" in headline(changed)[0]


def test_findings_tell_what_is_not_defined(report: AdditivityReport) -> None:
    text = findings(_with_sum(report, None))["w4a4"]
    assert "The sum of single-step errors is not defined (too few plans)" in text
    assert "held out from all 2 predictors, gram has the highest R² over plans, 0.987." in text


def test_findings_tell_the_hypotheses_and_the_floor(report: AdditivityReport) -> None:
    near = replace(report, scores=tuple(replace(score, floor_ratio=3.0) for score in report.scores))
    text = findings(near)["w4a4"]
    assert (
        "(H1, refuted), the summed deviations leave a relative residual of 0.92 [0.90, 0.94]"
        in text
    )
    assert "(H1m, supported), joint errors are 1.01 [0.99, 1.03] times" in text
    assert "(H2, undecided) are 22 % [18 %, 27 %] of the all-low mean square." in text
    assert "3.00 times the numerical floor" in text
    assert "numerical floor" not in findings(report)["w4a4"]


def test_summary_fits_a_screen(report: AdditivityReport) -> None:
    page = Path("additivity-sd3/report.html")
    text = summary_text(report, page)
    for told in ("-3.500 refuted", "0.987 supported", "not defined", "H2 off-diagonal", str(page)):
        assert told in text
    many = ("w8a8", "w4a8", "w4a4", "w6a6+lr32", "mixed", "nvfp4")
    scores = [
        replace(score, level=level)
        for level in many
        for score in report.scores
        if score.level == "w4a4"
    ]
    crowded = replace(report, levels=("fp32", *many), scores=tuple(scores))
    wide = summary_text(crowded, page)
    for screen in (text, wide):
        lines = screen.splitlines()
        assert len(lines) <= 24
        assert max(map(len, lines)) <= 100
        assert screen.isascii()
    assert "More levels in the report: mixed, nvfp4" in wide


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Interval(0.062, -0.11, 0.27), "0.06 [-0.11, 0.27]"),
        (Interval(0.12, -2.3e-18, 0.24), "0.12 [0.00, 0.24]"),
        (Interval(0.0123, 0.0119, 0.0131), "0.012 [0.012, 0.013]"),
        (Interval(12.0, 11.0, 13.0), "12.00 [11.00, 13.00]"),
        (Interval(0.5, float("nan"), float("nan")), "0.50"),
        (Interval(float("nan"), 0.0, 1.0), "n/a"),
        (None, "n/a"),
    ],
)
def test_interval_as_text(value: Interval | None, text: str) -> None:
    assert interval(value) == text
