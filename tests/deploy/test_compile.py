"""`torch.compile` on the denoisers of all families: graphs are counted by the backend."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from tests.deploy.conftest import build, call, denoisers
from tmpdiff_bench import deploy
from tmpdiff_bench.plan import PrecisionPlan

# diffusers 0.42 converts tensors in a way that NumPy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SD3, FLUX = "StableDiffusion3Pipeline", "FluxPipeline"
PIXART, SDXL = "PixArtSigmaPipeline", "StableDiffusionXLPipeline"
PLAN = PrecisionPlan.parse("fp32 w4a4 w8a8 w4a4")
# denoisers of the same classes with one block of each kind: tracing takes time by the block
SMALL: dict[str, dict[str, Any]] = {
    SD3: {"num_layers": 1},
    FLUX: {"num_layers": 1, "num_single_layers": 1},
    PIXART: {"num_layers": 1},
    SDXL: {
        "down_block_types": ("CrossAttnDownBlock2D",),
        "mid_block_type": None,
        "up_block_types": ("CrossAttnUpBlock2D",),
        "block_out_channels": (32,),
        "transformer_layers_per_block": 1,
        "attention_head_dim": 2,
    },
}
TWICE = {"true_cfg_scale": 3.0, "negative_prompt": [""] * 2}  # two calls of the network a step


@pytest.mark.parametrize(
    ("name", "way"),
    [
        (SD3, "before"),
        (SD3, "after"),
        (FLUX, "before"),
        (FLUX, "blocks"),
        (PIXART, "after"),
        (SDXL, "before"),
    ],
)
def test_a_compiled_denoiser_is_compiled_once_a_level(
    name: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before or after a plan is applied, whole or by its blocks: later steps, later images, and
    other orders of levels compile nothing.
    """
    pipe = build(name)
    [place] = denoisers(pipe)
    whole: Any = getattr(pipe, place)
    options: Any = TWICE if name == FLUX else {}
    original = type(whole).from_config({**whole.config, **SMALL[name]}).to(pipe.device).eval()
    setattr(pipe, place, original)
    deploy.apply(pipe, PLAN)
    expected = call(pipe, **options)
    deploy.remove(pipe)
    graphs: list[Any] = []
    after: list[int] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    step = pipe.scheduler.step

    @functools.wraps(step)  # pipelines look at its signature
    def noted(*args: Any, **kwargs: Any) -> Any:
        after.append(len(graphs))
        return step(*args, **kwargs)

    monkeypatch.setattr(pipe.scheduler, "step", noted)
    torch._dynamo.reset()
    try:
        if way == "before":
            setattr(pipe, place, torch.compile(original, backend=backend))
        deploy.apply(pipe, PLAN)
        if way == "after":
            setattr(pipe, place, torch.compile(getattr(pipe, place), backend=backend))
        if way == "blocks":
            getattr(pipe, place).compile_repeated_blocks(backend=backend)
        found = call(pipe, **options)
        first = len(graphs)
        assert 0 < after[0] < after[1] < after[2] == after[3] == first
        assert torch.equal(call(pipe, **options), found)
        deploy.apply(pipe, PrecisionPlan(PLAN.levels[::-1]))
        call(pipe, **options)
        assert len(graphs) == first
        assert torch.allclose(found, expected, atol=1e-5)
        deploy.remove(pipe)
    finally:
        torch._dynamo.reset()
