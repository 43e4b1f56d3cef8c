"""Plans beside what users do to denoisers: compile, offload, change weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.deploy.conftest import call
from tmpdiff_bench import deploy
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.plan import PrecisionPlan

PLAN = PrecisionPlan.parse("fp32 w4a4 w8a8 w4a4")


@pytest.mark.parametrize("before", [True, False])
def test_a_compiled_denoiser_is_compiled_once_a_level(pipe: Any, before: bool) -> None:
    """Counted by the backend; later images, and other orders of levels, compile nothing."""
    whole = pipe.transformer
    pipe.transformer = type(whole).from_config({**whole.config, "num_layers": 1}).eval()
    deploy.apply(pipe, PLAN)
    expected = call(pipe)
    deploy.remove(pipe)
    original, graphs = pipe.transformer, []

    def backend(graph: Any, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    try:
        if before:
            pipe.transformer = torch.compile(original, backend=backend)
            deploy.apply(pipe, PLAN)
        else:
            deploy.apply(pipe, PLAN)
            pipe.transformer = torch.compile(pipe.transformer, backend=backend)
        found = call(pipe)
        first = len(graphs)
        assert first >= 3
        assert torch.equal(call(pipe), found)
        deploy.apply(pipe, PrecisionPlan(PLAN.levels[::-1]))
        call(pipe)
        assert len(graphs) == first
        assert torch.allclose(found, expected, atol=1e-5)
        deploy.remove(pipe)
    finally:
        pipe.transformer = original
        torch._dynamo.reset()


@pytest.mark.parametrize("before", [True, False])
def test_model_offloading(pipe: Any, before: bool) -> None:
    """With the CPU as the device that runs: diffusers sets the same hooks."""
    deploy.apply(pipe, PLAN)
    expected = call(pipe)
    deploy.remove(pipe)
    denoiser = pipe.transformer
    if before:
        pipe.enable_model_cpu_offload(device="cpu")
    deploy.apply(pipe, PLAN)
    if not before:
        pipe.enable_model_cpu_offload(device="cpu")
    assert "_hf_hook" in vars(pipe.transformer)
    for _ in range(2):
        assert torch.equal(call(pipe), expected)
    deploy.remove(pipe)
    assert pipe.transformer is denoiser
    assert "_hf_hook" in vars(denoiser)
    call(pipe)
    pipe.remove_all_hooks()


def test_changed_weights_reach_all_levels(pipe: Any) -> None:
    deploy.apply(pipe, PrecisionPlan.uniform("w4a4", 4))
    before = call(pipe)
    weight = pipe.transformer.transformer_blocks[0].attn.to_q.weight
    saved = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(-1)
    changed = call(pipe)
    deploy.remove(pipe)
    deploy.apply(pipe, PrecisionPlan.uniform("w4a4", 4))
    assert torch.equal(call(pipe), changed)
    assert not torch.equal(changed, before)
    with torch.no_grad():
        weight.copy_(saved)
    assert torch.equal(call(pipe), before)


def test_offloading_layer_by_layer_is_refused(pipe: Any) -> None:
    layer = pipe.transformer.transformer_blocks[0]
    layer._hf_hook = object()
    try:
        with pytest.raises(UsageError, match="enable_sequential_cpu_offload"):
            deploy.apply(pipe, PLAN)
    finally:
        del layer._hf_hook
