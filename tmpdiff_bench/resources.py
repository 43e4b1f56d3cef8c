"""Where the files are that ship with the library: embedded models, prompts, hardware sheets."""

from __future__ import annotations

from pathlib import Path

from tmpdiff_bench.errors import UsageError


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
