"""`index.html`: all findings, tables and figures of a reports folder on one page.

    python -m analysis.page [--reports reports]

Findings come first. What is missing is named on the page. It loads nothing but its own figures.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from analysis.base import FigureFile, TableFile
from analysis.findings import RULES
from analysis.provenance import ROOT, git_state, provenance, versions
from analysis.registry import FIGURES, TABLES
from tmpdiff_bench.commands import ArgumentParser, run
from tmpdiff_bench.store import write_atomically

LONG = 30  # rows above which a table is folded, by model where it has that column


@dataclass(frozen=True)
class Section:
    """A question, the tables that answer it (with findings) and its figures, by name."""

    name: str
    title: str
    tables: tuple[str, ...]
    figures: tuple[str, ...] = ()


JOINT = "additivity/report.html"
_MODELS = ("sd3", "flux", "pixart", "sdxl")
SECTIONS = (
    Section("additivity", "Do errors of single steps add up?", ("hypotheses", "predictors")),
    Section(
        "optimum",
        "How far is each allocator from the optimum, and at what price?",
        ("regret",),
        ("regret",),
    ),
    Section(
        "rivals",
        "Does temporal mixed precision beat a uniform level, and fewer steps?",
        ("rivals",),
        tuple(f"{kind}-{model}" for model in _MODELS for kind in ("pareto", "grid")),
    ),
    Section("first-last", "Where is first-and-last-n good enough?", ("first-last",)),
    Section(
        "allocators", "Which allocator is best?", ("ranks", "quality"), ("errors-over-knapsack",)
    ),
    Section("transfer", "Do plans hold elsewhere?", ("transfer",)),
    Section("drift", "How far do numbers drift?", ("drift",)),
    Section("ran", "What ran", ("tasks",)),
    Section(
        "more",
        "Levels, costs, and the prefix tree",
        ("allocators", "allocators-live", "levels"),
        ("allocators", "roofline-speedups", "prefix-tree"),
    ),
)


def read_markdown(text: str) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table as `Table.to_markdown` writes it."""
    lines = [line[2:-2] for line in text.splitlines() if line.startswith("| ")]
    head, _, *rows = [
        [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)]
        for line in lines
    ]
    return head, rows


def shown_table(folder: Path, name: str) -> dict[str, Any] | None:
    """What the page shows of a table; None where it is missing."""
    about = _about(folder / "tables" / f"{name}.prov.json")
    path = folder / "tables" / f"{name}.md"
    if about is None or not path.is_file():
        return None
    head, rows = read_markdown(path.read_text(encoding="utf-8"))
    groups = {"": rows}
    if len(rows) > LONG:
        column = head.index("model") if "model" in head else None
        groups = {}
        for row in rows:
            groups.setdefault("all rows" if column is None else row[column], []).append(row)
    return {"name": name, **about, "head": head, "groups": groups}


def shown_figure(folder: Path, name: str) -> dict[str, Any] | None:
    """What the page shows of a figure; None where it is missing."""
    about = _about(folder / "figures" / f"{name}.prov.json")
    if about is None or not (folder / "figures" / f"{name}.svg").is_file():
        return None
    return {"name": name, **about}


def findings(folder: Path, section: Section) -> list[str]:
    """The sentences that the section's tables support."""
    said: list[str] = []
    for name in section.tables:
        path = folder / "tables" / f"{name}.csv"
        if name in RULES and path.is_file():
            said += RULES[name](pd.read_csv(path))
    return said


def gaps(folder: Path) -> list[str]:
    """Declared tables and figures that are not there."""
    needed: list[TableFile | FigureFile] = [*TABLES]
    needed += (figure for figure in FIGURES if not figure.optional)
    return [file for output in needed for file in output.files if not (folder / file).is_file()]


def additivity_reports(folder: Path) -> list[dict[str, str]]:
    """The reports of the main job: title, page, and its main figure."""
    found = []
    for path in sorted(folder.glob("additivity/*/summary.json")):
        title = json.loads(path.read_text(encoding="utf-8"))["manifest"]["title"]
        name = path.parent.relative_to(folder).as_posix()
        figure = path.parent / "figures" / "predicted-against-measured.svg"
        found.append(
            {
                "title": title,
                "page": f"{name}/report.html" if (path.parent / "report.html").is_file() else "",
                "figure": figure.relative_to(folder).as_posix() if figure.is_file() else "",
            }
        )
    return found


def page(folder: Path) -> str:
    """The whole page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sections = [
        {
            "name": section.name,
            "title": section.title,
            "findings": findings(folder, section),
            "tables": [shown for name in section.tables if (shown := shown_table(folder, name))],
            "figures": [shown for name in section.figures if (shown := shown_figure(folder, name))],
        }
        for section in SECTIONS
    ]
    suite = _about(folder / "suite-v1" / "manifest.json") or {}
    return environment.get_template("index.html.jinja").render(
        sections=sections,
        gaps=gaps(folder),
        additivity=additivity_reports(folder),
        joint=JOINT if (folder / JOINT).is_file() else "",
        suite=suite,
        git=git_state(),
        versions=versions(),
    )


def write_page(folder: Path) -> Path:
    """Write `index.html` and its provenance; returns its path."""
    path = folder / "index.html"
    content = page(folder).encode()
    inputs = [
        *folder.glob("tables/*.csv"),
        *folder.glob("tables/*.md"),
        *folder.glob("figures/*.svg"),
        Path(__file__).with_name("index.html.jinja"),
    ]
    origin = provenance(
        command="python -m analysis.page",
        inputs=inputs,
        outputs={"index.html": content},
        folder=folder,
    )
    write_atomically(path, content)
    write_atomically(folder / "index.prov.json", (json.dumps(origin, indent=1) + "\n").encode())
    return path


def main(argv: Sequence[str]) -> None:
    """Write the page."""
    parser = ArgumentParser(
        prog="python -m analysis.page",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--reports", type=Path, default=ROOT / "reports", metavar="FOLDER")
    folder = parser.parse_args(argv).reports.resolve()
    write_page(folder)
    for gap in gaps(folder):
        print(f"missing: {gap}")


def _about(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


if __name__ == "__main__":
    run(main)
