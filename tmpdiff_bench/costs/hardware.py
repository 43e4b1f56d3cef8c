"""Hardware sheets: peak rates, bandwidth and memory of a GPU, each with its source."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tmpdiff_bench.costs.table import is_number
from tmpdiff_bench.errors import UsageError, check_known, unknown
from tmpdiff_bench.files import data_folder, read_text

# what tensor cores are rated for; literal, as the levels import torch
FORMATS = (
    *("fp32", "tf32", "bf16", "fp16", "int8", "int4"),
    *("fp8", "mxfp8", "mxfp6", "mxfp4", "nvfp4"),
)
_FIELDS = {"name", "memory_gb", "bandwidth_gb_s", "sources", "peak", "absent"}


@dataclass(frozen=True)
class Hardware:
    """A GPU: `bandwidth` in bytes/s; `peak` in dense operations/s per number format.

    `absent` gives the reason for each format that the sheet has no rate of. `sources` names the
    documents that the figures are from.
    """

    key: str
    name: str
    memory_gb: float
    bandwidth: float
    peak: Mapping[str, float]
    absent: Mapping[str, str]
    sources: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> Hardware:
        """Read a sheet. Raises `UsageError` where a figure is missing, or names no source."""
        try:
            content = tomllib.loads(read_text(path, "hardware sheet"))
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"hardware sheet {path} can't be read: {error}") from error
        if set(content) != _FIELDS:
            raise UsageError(f"hardware sheet {path} has the fields {sorted(_FIELDS)}")
        for table in ("sources", "peak", "absent"):
            if not isinstance(content[table], dict):
                raise UsageError(f"{path}: {table} is a table, not {content[table]!r}")
        sources, peak = content["sources"], content["peak"]
        for figure in (content["memory_gb"], content["bandwidth_gb_s"], *peak.values()):
            known = isinstance(figure, dict) and figure.get("source") in sources
            if not known or not (is_number(value := figure.get("value")) and value > 0):
                raise UsageError(f"{path}: {figure} needs a positive value and one of the sources")
        for format in (*peak, *content["absent"]):
            if format not in FORMATS:
                raise UsageError(f"{path}: {unknown('format', format, FORMATS)}")
        if "bf16" not in peak:
            raise UsageError(f"{path}: no rate for bf16, which all other levels are compared with")
        return cls(
            path.stem,
            content["name"],
            content["memory_gb"]["value"],
            content["bandwidth_gb_s"]["value"] * 1e9,
            {format: figure["value"] * 1e12 for format, figure in peak.items()},
            content["absent"],
            sources,
        )


def hardware_names() -> tuple[str, ...]:
    """Keys of the sheets that come with the library."""
    return tuple(sorted(path.stem for path in (data_folder() / "hardware").glob("*.toml")))


def load_hardware(name: str) -> Hardware:
    """A sheet by its key, or by the path of its file. Raises `UsageError`."""
    if name.endswith(".toml"):
        return Hardware.read(Path(name))
    check_known("hardware", name, hardware_names())
    return Hardware.read(data_folder() / "hardware" / f"{name}.toml")
