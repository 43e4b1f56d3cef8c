"""Files of tables and figures, and the pages that show them."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jinja2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from tmpdiff_bench.report.style import Drawing
from tmpdiff_bench.report.tables import Table
from tmpdiff_bench.store import write_atomically


def figure_files(
    drawings: Iterable[Drawing], kinds: Sequence[Literal["svg", "png"]] = ("svg", "png")
) -> dict[str, bytes]:
    """Each figure in each of the kinds."""
    return {
        f"figures/{drawing.name}.{kind}": drawing.to_bytes(kind)
        for drawing in drawings
        for kind in kinds
    }


def inlined(files: Mapping[str, bytes]) -> dict[str, str]:
    """Data URIs by figure's name: the smaller of its two files."""
    found = {}
    for name in (name.removesuffix(".svg") for name in files if name.endswith(".svg")):
        kinds = {"image/svg+xml": files[f"{name}.svg"], "image/png": files[f"{name}.png"]}
        kind, content = min(kinds.items(), key=lambda item: len(item[1]))
        uri = f"data:{kind};base64,{base64.b64encode(content).decode()}"
        found[name.removeprefix("figures/")] = uri
    return found


def pictures_html(words: str, pictures: NDArray[np.uint8]) -> str:
    """Pictures (m, H, W, 3) side by side, and what they are."""
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(pictures, axis=1)).save(buffer, "PNG")
    uri = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return f'<p><img src="{uri}" alt="{html.escape(words)}"><br>{html.escape(words)}</p>'


def notebook_html(words: str, table: pd.DataFrame | None, drawings: Iterable[Drawing]) -> str:
    """What a notebook shows of a result: a line, a table and figures."""
    parts = [f"<p>{html.escape(words)}</p>"]
    if table is not None:
        parts.append(table.to_html(index=False, border=0))
    for drawing in drawings:
        [image] = inlined(figure_files([drawing])).values()
        parts.append(f'<img src="{image}" alt="{html.escape(drawing.alt)}" width="560">')
    return "\n".join(parts)


def table_files(written: Iterable[Table]) -> dict[str, bytes]:
    """Each table as csv, md and tex."""
    return {
        f"tables/{table.name}.{kind}": text.encode()
        for table in written
        for kind, text in (
            ("csv", table.to_csv()),
            ("md", table.to_markdown()),
            ("tex", table.to_latex()),
        )
    }


def render(folder: Path, template: str, **values: Any) -> str:
    """A page of a template in a folder; every value is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files by name below a folder, each whole or not at all."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
