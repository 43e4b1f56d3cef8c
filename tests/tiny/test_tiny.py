"""Every tiny pipeline draws: finite, the same again, and something else for another prompt."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import TINY, WARNINGS, Tiny, each

pytestmark = [pytest.mark.filterwarnings(entry) for entry in WARNINGS]


def draw(tiny: Tiny, pipeline: Any, samples: dict[str, list[Any]], seeds: list[int]) -> Tensor:
    call = {**tiny.call, "output_type": "latent" if tiny.latent else "np"}
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    shared = {name: values[0] for name, values in samples.items()}
    copies = {name: list(values) for name, values in samples.items()}  # Z-Image changes its list
    given = copies if tiny.batches else shared
    output = pipeline(
        **given,
        generator=generators if tiny.batches else generators[0],
        num_inference_steps=tiny.steps,
        **call,
    )[0]
    return torch.as_tensor(output)


@pytest.mark.parametrize("name", each(TINY))
def test_tiny_pipeline(name: str) -> None:
    tiny = TINY[name]
    first, second = tiny.build(), tiny.build()
    samples = tiny.each(2)
    drawn = draw(tiny, first, samples, [0, 1])
    assert drawn.isfinite().all()
    assert torch.equal(drawn, draw(tiny, first, samples, [0, 1]))  # once more
    assert torch.equal(drawn, draw(tiny, second, samples, [0, 1]))  # by equal weights
    other = {key: values[::-1] for key, values in samples.items()}
    assert not torch.equal(drawn[0], draw(tiny, first, other, [0, 1])[0])
