"""Prompts and the encoders that read them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

_UNLIMITED = 10**6  # transformers says so of tokenizers without a limit of their own


def cut_prompts(pipe: Any, texts: Sequence[str], arguments: Mapping[str, Any]) -> list[str]:
    """The texts of which a tokenizer of the pipeline takes the beginning only, in a call with these
    arguments.
    """
    own = inspect.signature(type(pipe).__call__).parameters.get("max_sequence_length")
    asked = arguments.get("max_sequence_length", own.default if own is not None else None)
    cut: dict[str, None] = {}
    for name, part in vars(pipe).items():
        if not name.startswith("tokenizer") or not callable(part):
            continue
        limits = [part.model_max_length, asked]
        limit = min((x for x in limits if isinstance(x, int) and x < _UNLIMITED), default=None)
        if limit is not None:
            for text in texts:
                if len(part(text, truncation=False, verbose=False)["input_ids"]) > limit:
                    cut[text] = None
    return [text for text in texts if text in cut]


def free_text_encoders(pipe: Any) -> None:
    """Drop the weights of the text encoders for good; what else pipelines ask them for stays."""
    for name, part in vars(pipe).items():
        if name.startswith("text_encoder") and isinstance(part, nn.Module):
            for tensor in (*part.parameters(), *part.buffers()):
                tensor.data = tensor.data.new_empty(0)
