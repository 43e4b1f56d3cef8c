"""Texts that tokenizers cut, and encoders that are freed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.tiny import TINY
from tmpdiff_bench.pipelines.calls import cut_prompts, free_text_encoders


@pytest.mark.parametrize(
    "name", ["StableDiffusion3Pipeline", "FluxPipeline", "PixArtSigmaPipeline", "WanPipeline"]
)
def test_what_is_cut_has_no_end(name: str) -> None:
    """The longest text that is not cut is told from itself with more words, by its embedding."""
    tiny = TINY[name]
    pipe = tiny.build()
    texts = [" ".join(["red"] * n) for n in range(1, 1200, 7)]
    cut = cut_prompts(pipe, texts, tiny.call)
    assert 0 < len(cut) < len(texts)
    assert cut == texts[-len(cut) :]
    assert cut_prompts(pipe, texts[:1], {**tiny.call, "max_sequence_length": 1}) == texts[:1]


def test_freed_encoders_take_nothing_and_still_say_what_they_are() -> None:
    pipe = TINY["StableDiffusion3Pipeline"].build()
    before: dict[str, Any] = {
        name: (part.dtype, part.device, part.config.hidden_size)
        for name, part in vars(pipe).items()
        if name.startswith("text_encoder")
    }
    assert len(before) == 3
    free_text_encoders(pipe)
    for name, told in before.items():
        part: Any = getattr(pipe, name)
        assert sum(t.nbytes for t in (*part.parameters(), *part.buffers())) == 0
        assert (part.dtype, part.device, part.config.hidden_size) == told
    assert all(p.numel() for p in pipe.transformer.parameters())
    assert pipe.device == torch.device("cpu")
