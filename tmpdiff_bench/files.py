"""Files that ship, and those that users hand over: what can't be read is one `UsageError`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tmpdiff_bench.errors import UsageError


def read_text(path: Path, what: str = "") -> str:
    """A text file; `what` names its kind in errors."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{what} {path} can't be read: {error}".lstrip()) from error


def parse_json(text: str, what: str) -> Any:
    """Strict JSON: no field twice, no NaN or infinity; `what` it is of, such as "a plan's JSON"."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) != len(pairs):
            raise UsageError(f"{what} has a field twice: {[name for name, _ in pairs]}")
        return content

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no number of JSON")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except UsageError:
        raise
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{what} can't be read: {error}") from error


def read_manifest(folder: Path, *, absent: str, **versions: int) -> dict[str, Any]:
    """`manifest.json` of a folder, in which all `versions` are these. `absent` says what is not
    there where it isn't.
    """
    path = folder / "manifest.json"
    if not path.exists():
        raise UsageError(f"{folder} holds {absent}")
    found = parse_json(read_text(path), str(path))
    told = found if isinstance(found, dict) else {}
    for name, wanted in versions.items():
        if told.get(name) != wanted:
            raise UsageError(
                f"{path} has {name.replace('_', ' ')} {told.get(name)}, this library reads "
                f"{wanted}: make it again with this library, or read it with the one that made it"
            )
    return told


def data_folder() -> Path:
    """The folder `data`, to be read only: inside an installed package, else that of the checkout.

    Raises `UsageError` where neither is there.
    """
    package = Path(__file__).parent
    places = (package / "data", package.parent / "data")
    for place in places:
        if place.is_dir():
            return place
    raise UsageError(
        f"the library's data are in neither {places[0]} nor {places[1]}: "
        "install tmpdiff_bench again, or clone its whole repository"
    )
