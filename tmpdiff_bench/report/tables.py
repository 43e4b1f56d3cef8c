"""Numbers as text, and tables: whole numbers for machines, words for readers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from tmpdiff_bench.statistics import Interval


def number(value: float, scale: float | None = None) -> str:
    """Two decimals, or more where two significant digits of `scale` (or of the value) take them."""
    if math.isnan(value):
        return "n/a"
    size = abs(value if scale is None else scale)
    decimals = 2 if size == 0 or size >= 0.1 else 1 - math.floor(math.log10(size))
    return f"{round(value, decimals) + 0.0:.{decimals}f}"  # + 0.0: no "-0.00"


def r_squared(value: float) -> str:
    """Three decimals: the good predictors differ in the third."""
    return "n/a" if math.isnan(value) else f"{value:.3f}"


def percent(value: float) -> str:
    """A share in whole percent."""
    return "n/a" if math.isnan(value) else f"{100 * value:.0f} %"


def interval(value: Interval | None, write: Callable[[float], str] | None = None) -> str:
    """Format as `estimate [low, high]`, all three alike."""
    if value is None or math.isnan(value.estimate):
        return "n/a"
    if math.isnan(value.low):
        return (write or number)(value.estimate)
    if write is None:
        scale = max(abs(value.low), abs(value.high))
        estimate, low, high = (number(end, scale) for end in dataclasses.astuple(value))
    else:
        estimate, low, high = (write(end) for end in dataclasses.astuple(value))
    return f"{estimate} [{low}, {high}]"


def enumerate_words(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


@dataclass(frozen=True, eq=False)
class Table:
    """`frame` holds every column at full precision; `text` what a reader compares, as words;
    `caption` says how to read it.
    """

    name: str
    title: str
    frame: pd.DataFrame
    text: pd.DataFrame
    caption: str = ""

    def to_csv(self) -> str:
        """The whole frame; reading it again gives the same numbers."""
        text: str = self.frame.to_csv(index=False, lineterminator="\n")
        return text

    def to_markdown(self) -> str:
        """The text, below the caption where there is one."""
        lines = [self.text.columns, ["---"] * self.text.shape[1], *self.text.to_numpy()]
        cells = ([cell.replace("|", "\\|") for cell in line] for line in lines)
        head = f"{self.title}. {self.caption}\n\n" if self.caption else ""
        return head + "".join(f"| {' | '.join(line)} |\n" for line in cells)

    def to_latex(self) -> str:
        """A `tabular` for a paper that loads booktabs."""
        head = rf"% {self.title}; needs \usepackage{{booktabs}}"
        escaped = self.text.style.hide(axis="index").format(escape="latex")
        escaped = escaped.format_index(escape="latex", axis=1)
        return f"{head}\n{escaped.to_latex(hrules=True, column_format='l' * self.text.shape[1])}"


def aligned(rows: Sequence[Sequence[str]], *, right: bool = True) -> str:
    """Rows as columns of a terminal: the first to the left, the others to the `right`, if so."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        (
            cell.rjust(width) if right and i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join("  ".join(line).rstrip() for line in lines)


def finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row for JSON: NaN and infinities are null."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }
