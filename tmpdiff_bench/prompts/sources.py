"""All prompt sets by name."""

from __future__ import annotations

from pathlib import Path

from tmpdiff_bench.errors import UsageError, unknown
from tmpdiff_bench.prompts.base import PromptSource
from tmpdiff_bench.prompts.coco import COCO
from tmpdiff_bench.prompts.drawbench import DRAWBENCH
from tmpdiff_bench.prompts.files import FilePrompts
from tmpdiff_bench.prompts.mjhq import MJHQ
from tmpdiff_bench.prompts.partiprompts import PARTIPROMPTS
from tmpdiff_bench.prompts.scenes import ScenesPrompts
from tmpdiff_bench.prompts.sdci import SDCI
from tmpdiff_bench.zoo.prompts import PROMPT_SETS

DEFAULT_SET = "scenes"
_ALL: tuple[PromptSource, ...] = (
    ScenesPrompts(DEFAULT_SET, mixed=True),
    *(ScenesPrompts(name) for name in PROMPT_SETS),
    MJHQ,
    SDCI,
    COCO,
    PARTIPROMPTS,
    DRAWBENCH,
)
SOURCES = {source.name: source for source in _ALL}


def prompt_source(name: str | None = None, file: Path | None = None) -> PromptSource:
    """The set of a name (by default the mix of Scenes), or that of a user's file.

    Raises:
        UsageError: an unknown name, with the nearest one; a name and a file.
    """
    if file is not None:
        if name is not None:
            raise UsageError("--prompt-set and --prompts exclude one another: give one of them")
        return FilePrompts(file)
    name = DEFAULT_SET if name is None else name
    if name not in SOURCES:
        raise unknown("prompt set", name, SOURCES)
    return SOURCES[name]
