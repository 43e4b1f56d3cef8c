"""Prompt sets: Scenes that ship, published sets of the Hugging Face hub, and a user's own files."""

from tmpdiff_bench.prompts.base import COLUMNS, Prompts, PromptSource, take
from tmpdiff_bench.prompts.sources import DEFAULT_SET, SOURCES, prompt_source

__all__ = [
    "COLUMNS",
    "DEFAULT_SET",
    "SOURCES",
    "PromptSource",
    "Prompts",
    "prompt_source",
    "take",
]
