"""All prompt sets by name."""

from __future__ import annotations

from typing import Any

from tmpdiff_bench.errors import UsageError, unknown
from tmpdiff_bench.prompts.base import PromptSource
from tmpdiff_bench.prompts.coco import COCO
from tmpdiff_bench.prompts.drawbench import DRAWBENCH
from tmpdiff_bench.prompts.files import OwnPrompts
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


def prompt_source(name: str | None = None, own: Any = None) -> PromptSource:
    """The set of a name (by default the mix of Scenes), or a user's own: texts, a table or a file.

    Raises:
        UsageError: an unknown name, with the nearest one; a name and prompts of one's own.
    """
    if own is not None:
        if name is not None:
            raise UsageError("--prompt-set and --prompts exclude one another: give one of them")
        return OwnPrompts(own)
    name = DEFAULT_SET if name is None else name
    if name not in SOURCES:
        raise unknown("prompt set", name, SOURCES)
    return SOURCES[name]
