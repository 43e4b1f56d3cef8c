"""What a script of `analysis/` is: declared inputs, declared outputs, files with provenance.

A script is a module with a `SCRIPT`; `python -m analysis.NAME` runs it. What it makes are tables
(csv with every column, md and tex with what a reader compares) and figures (svg); beside them lies
one `NAME.prov.json` that says where all of their files come from.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from analysis.provenance import ROOT, provenance
from tmpdiff_bench.commands import ArgumentParser
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.report.pages import figure_files, table_files, write_files
from tmpdiff_bench.report.style import Drawing
from tmpdiff_bench.report.tables import Table

TABLE_SUFFIXES = (".csv", ".md", ".tex")


@dataclass(frozen=True)
class Tolerance:
    """Two-sided: |found - golden| <= absolute + relative * |golden|; for a stated reason."""

    relative: float
    absolute: float
    reason: str

    def holds(self, found: float, golden: float) -> bool:
        """Whether `found` is near enough; NaN is near NaN only."""
        if found != found or golden != golden:
            return found != found and golden != golden
        return found == golden or abs(found - golden) <= self.absolute + self.relative * abs(golden)


@dataclass(frozen=True)
class TableFile:
    """A declared table. `keys` are the columns that name a row, exact on every machine.

    `kernels` is whether its other columns depend on the last bits of a network's output; if so,
    a machine of another kind is held to `elsewhere` (tolerances by column) and to nothing more, in
    the rows that have one of the values of every column of `rows_elsewhere`. A column of
    `intervals` holds, too, where one of both means lies within the other's interval (its two
    columns): a mean of a few samples may rest on one that came out otherwise.
    """

    name: str
    keys: tuple[str, ...]
    kernels: bool = True
    elsewhere: Mapping[str, Tolerance] = field(default_factory=dict)
    rows_elsewhere: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    intervals: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def files(self) -> tuple[str, ...]:
        """Its files below the reports folder."""
        return tuple(f"tables/{self.name}{suffix}" for suffix in TABLE_SUFFIXES)


@dataclass(frozen=True)
class FigureFile:
    """A declared figure; an `optional` one is of a model that need not be there."""

    name: str
    optional: bool = False

    @property
    def files(self) -> tuple[str, ...]:
        """Its files below the reports folder."""
        return (f"figures/{self.name}.svg",)


Made = Table | Drawing


@dataclass(frozen=True)
class Reports:
    """A reports folder; in the `quick` profile, scripts that run a model run it less."""

    folder: Path
    quick: bool = False

    def table(self, name: str) -> pd.DataFrame:
        """What the csv of a table of ours holds."""
        return pd.read_csv(self.folder / "tables" / f"{name}.csv")


@dataclass(frozen=True)
class Script:
    """`make(reports)` gives the declared outputs, in any order, from what is in the folder.

    `inputs` are globs below the reports folder or, if they begin with `data/`, below the
    repository; each must match at least one file. Raises `UsageError` where one does not.
    """

    name: str
    make: Callable[[Reports], Iterable[Made]]
    inputs: tuple[str, ...]
    outputs: tuple[TableFile | FigureFile, ...]

    @property
    def command(self) -> str:
        """What a reader types."""
        return f"python -m analysis.{self.name}"

    def found(self, folder: Path) -> list[Path]:
        """The files that its inputs name."""
        paths: list[Path] = []
        for pattern in self.inputs:
            base = ROOT if pattern.startswith("data/") else folder
            matched = [path for path in base.glob(pattern) if path.is_file()]
            if not matched:
                raise UsageError(f"{self.command}: no {pattern} in {folder}: nox -s reproduce")
            paths += matched
        return paths

    def missing(self, folder: Path) -> list[str]:
        """Declared files that are not there."""
        needed = [output for output in self.outputs if not getattr(output, "optional", False)]
        names = [name for output in needed for name in output.files]
        return [name for name in names if not (folder / name).is_file()]

    def run(self, reports: Reports) -> list[Made]:
        """Make everything, write it, and return it."""
        folder = reports.folder
        inputs = self.found(folder)
        source = ROOT / "analysis" / f"{self.name}.py"
        made = [(item, contents(item)) for item in self.make(reports)]
        declared = {file for output in self.outputs for file in output.files}
        if undeclared := [item.name for item, files in made if not declared.issuperset(files)]:
            raise AssertionError(f"{self.name} does not declare {', '.join(undeclared)}")
        for item, files in made:
            about = {"title": item.title, "caption": item.caption, "alt": getattr(item, "alt", "")}
            origin = provenance(
                command=self.command + " --quick" * reports.quick,
                inputs=[*inputs, source],
                outputs=files,
                folder=folder,
            )
            stem = next(iter(files)).rpartition(".")[0]
            text = json.dumps({**about, **origin}, indent=1, ensure_ascii=False)
            files[f"{stem}.prov.json"] = f"{text}\n".encode()
            write_files(folder, files)
        if missing := self.missing(folder):
            raise AssertionError(f"{self.name} declares, and did not make, {missing[0]}")
        return [item for item, _ in made]

    def main(self, argv: Sequence[str]) -> None:
        """The command: `--reports FOLDER`; prints the tables and the names of the figures."""
        doc = f"{', '.join(output.name for output in self.outputs)}: made from the reports folder."
        parser = ArgumentParser(
            prog=self.command,
            description=doc,
            epilog=f"example:\n  {self.command} --reports reports",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("--reports", type=Path, default=ROOT / "reports", metavar="FOLDER")
        parser.add_argument("--quick", action="store_true", help="the small profile")
        options = parser.parse_args(argv)
        for item in self.run(Reports(options.reports.resolve(), options.quick)):
            text = item.text.to_string(index=False) if isinstance(item, Table) else ""
            print(f"{item.title}\n{text}".strip())


def contents(item: Made) -> dict[str, bytes]:
    """Files of a table or figure, by name below the reports folder."""
    return figure_files([item], ["svg"]) if isinstance(item, Drawing) else table_files([item])
