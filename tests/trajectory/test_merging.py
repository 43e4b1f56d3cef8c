"""Rows of calls, told apart by sample: against orders of rows that are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tmpdiff_bench.trajectory.lanes import Merging, UnlikeError
from tmpdiff_bench.trajectory.replay import Request


def rows(samples: list[int], blocks: int, each: int, seed: int = 0) -> Tensor:
    """Random rows of samples, the same for a sample wherever it stands."""
    one = [torch.randn(blocks, each, 3, generator=_seeded(seed, i)) for i in samples]
    return torch.stack(one, 1).flatten(0, 2)


def _seeded(seed: int, sample: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * seed + sample)


def call(samples: list[int], blocks: int, each: int) -> tuple[Request, Any]:
    """A call with rows in tensors, in another dimension, in lists, and none; and its output."""
    latents, text = rows(samples, blocks, each), rows(samples, blocks, 1, seed=1)
    arguments = {
        "hidden_states": latents,
        "text": list(text),
        "inner": {"ids": torch.arange(4), "turned": rows(samples, 1, each, seed=2).T},
        "guidance": 2.5,
    }
    output = (2 * latents, [3 * x for x in text])
    return Request("transformer", "", lambda **_: output, (), arguments), output


def learnt(blocks: int, each: int) -> Merging:
    return Merging.learnt(
        [call([7], blocks, each), call([8], blocks, each)], call([7, 8], blocks, each)
    )


@given(st.integers(1, 3), st.integers(1, 3), st.lists(st.integers(0, 6), min_size=1, max_size=4))
def test_a_part_of_a_call_is_the_call_of_some_samples(
    blocks: int, each: int, chosen: list[int]
) -> None:
    merging, every = learnt(blocks, each), list(range(7))
    part = merging.cut(call(every, blocks, each)[0], chosen, len(every), "w4a4")
    wanted = call(chosen, blocks, each)[0]
    assert part.level == "w4a4"
    torch.testing.assert_close(dict(part.kwargs), dict(wanted.kwargs), atol=0, rtol=0)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3))
def test_parts_joined_are_the_whole(blocks: int, each: int, count: int, size: int) -> None:
    merging = learnt(blocks, each)
    every = list(range(count * size))
    whole = call(every, blocks, each)[1]
    parts = merging.parts(whole, count, size)
    for i, part in enumerate(parts):
        own = call(every[i * size : (i + 1) * size], blocks, each)[1]
        torch.testing.assert_close(part, own, atol=0, rtol=0)
    torch.testing.assert_close(merging.joined(parts, size), whole, atol=0, rtol=0)


def test_passes_of_guidance_may_come_and_go() -> None:
    merging = learnt(2, 1)
    part = merging.cut(call([0, 1, 2], 1, 1)[0], [2, 0], 3, "w4a4")
    assert torch.equal(part.kwargs["hidden_states"], rows([2, 0], 1, 1))


def test_rows_that_depend_on_others_are_refused() -> None:
    first, second, both = call([7], 1, 1), call([8], 1, 1), call([7, 8], 1, 1)
    mixed = (both[1][0] - both[1][0].mean(0), both[1][1])
    with pytest.raises(UnlikeError, match="depend on others"):
        Merging.learnt([first, second], (both[0], mixed))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_states": torch.zeros(5, 3)}, "number of rows"),
        ({"inner": {"ids": torch.arange(5), "turned": torch.zeros(3, 2)}}, "other tensors"),
        ({"guidance": torch.ones(2)}, "other tensors"),
        ({"more": torch.ones(2)}, "other tensors"),
        ({"text": None}, "no rows"),
    ],
)
def test_calls_unlike_those_learnt_from_are_refused(change: dict[str, Any], message: str) -> None:
    request = call([0, 1], 1, 1)[0]
    changed = Request("transformer", "", request.run, (), {**request.kwargs, **change})
    with pytest.raises(UnlikeError, match=message):
        learnt(1, 1).cut(changed, [0], 2, "w4a4")
