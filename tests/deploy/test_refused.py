"""What can't be right together with a plan: one line, when it is applied and at each call."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_submodules
from diffusers import (
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks import apply_first_block_cache, apply_pyramid_attention_broadcast
from torch import Tensor, nn

from tests.deploy.conftest import PLAN, build, by_hand, call
from tests.tiny import WARNINGS
from tmpdiff_bench import deploy
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.pipelines.layers import quantized_layers

pytestmark = [
    *(pytest.mark.filterwarnings(entry) for entry in WARNINGS),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:cache_dit"),
]

CACHED = "the transformer keeps results across steps in a cache, which plans change"
LAYER = "transformer_blocks.1.attn.to_k"
Undo = Callable[[], Any]


def broadcast(pipe: Any) -> PyramidAttentionBroadcastConfig:
    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(0, 1000),
        current_timestep_callback=lambda: int(pipe._current_timestep or 0),
    )


def first_block(pipe: Any) -> Undo:
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    return lambda: pipe.transformer.disable_cache()


def magnitudes(pipe: Any) -> Undo:
    config = MagCacheConfig(num_inference_steps=4, calibrate=True)
    pipe.transformer.enable_cache(config)
    return lambda: pipe.transformer.disable_cache()


def taylor(pipe: Any) -> Undo:
    pipe.transformer.enable_cache(TaylorSeerCacheConfig(cache_interval=2))
    return lambda: pipe.transformer.disable_cache()


def pyramid(pipe: Any) -> Undo:
    pipe.transformer.enable_cache(broadcast(pipe))
    return lambda: pipe.transformer.disable_cache()


def first_block_by_function(pipe: Any) -> Undo:
    apply_first_block_cache(pipe.transformer, FirstBlockCacheConfig(threshold=0.1))
    return functools.partial(remove_hooks, pipe.transformer)


def pyramid_by_function(pipe: Any) -> Undo:
    apply_pyramid_attention_broadcast(pipe.transformer, broadcast(pipe))
    return functools.partial(remove_hooks, pipe.transformer)


def remove_hooks(denoiser: nn.Module) -> None:
    for module in denoiser.modules():
        registry = getattr(module, "_diffusers_hook", None)
        if registry is not None:
            for name in list(registry.hooks):
                registry.remove_hook(name, recurse=False)


def dit(pipe: Any) -> Undo:
    import cache_dit

    cache_dit.enable_cache(pipe)
    return lambda: cache_dit.disable_cache(pipe)


CACHES = [first_block, magnitudes, taylor, pyramid, first_block_by_function, pyramid_by_function]


@pytest.mark.parametrize("enable", [*CACHES, dit])
def test_caches_across_steps(enable: Callable[[Any], Undo]) -> None:
    pipe = build("FluxPipeline")
    plain, planned = call(pipe), by_hand(pipe, PLAN)
    disable = enable(pipe)
    with pytest.raises(UsageError, match=CACHED):
        deploy.apply(pipe, PLAN)
    disable()
    deploy.apply(pipe, PLAN)
    assert torch.equal(call(pipe), planned)
    disable = enable(pipe)
    with pytest.raises(UsageError, match=CACHED):
        call(pipe)
    disable()
    assert torch.equal(call(pipe), planned)
    deploy.remove(pipe)
    assert torch.equal(call(pipe), plain)


def test_a_cache_on_another_pipeline_of_the_class() -> None:
    """Taken off after `apply`, it would take a plan off with it: the class is one."""
    other, pipe = build("FluxPipeline"), build("FluxPipeline")
    disable = dit(other)
    with pytest.raises(UsageError, match="a cache has wrapped FluxPipeline, and would take the"):
        deploy.apply(pipe, PLAN)
    disable()
    deploy.apply(pipe, PLAN)
    expected = call(pipe)
    disable = dit(other)
    assert torch.equal(call(pipe), expected)
    disable()
    assert torch.equal(call(pipe), expected)


def own_forward(layer: Any) -> None:
    original = layer.forward
    layer.forward = lambda input: original(input) * 2


def own_class(layer: Any) -> None:
    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return F.linear(input, self.weight, self.bias) * 2

    layer.__class__ = Doubled


def own_weight(layer: Any) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(nn.Sequential(layer), Int8WeightOnlyConfig(set_inductor_config=False))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (own_forward, f"the forward of layer {LAYER} is replaced by another function"),
        (own_class, f"layer {LAYER} \\(Doubled, Parameter\\) has arithmetic of its own"),
        (own_weight, f"layer {LAYER} \\(Linear, Int8Tensor\\) has arithmetic of its own"),
    ],
)
def test_layers_with_arithmetic_of_their_own(
    pipe: Any, change: Callable[[Any], None], message: str
) -> None:
    """Before, after, and in the middle of a call; left out, they run as they are at every level."""
    layer = pipe.transformer.get_submodule(LAYER)
    deploy.apply(pipe, PLAN)
    call(pipe)

    def meanwhile(_pipe: Any, step: int, _timestep: Any, inputs: Any) -> Any:
        if step == 0:
            change(layer)
        return inputs

    with pytest.raises(UsageError, match=message):
        call(pipe, callback_on_step_end=meanwhile)
    with pytest.raises(UsageError, match=message):
        call(pipe)
    deploy.remove(pipe)
    with pytest.raises(UsageError, match=message):
        deploy.apply(pipe, PLAN)
    names = tuple(name for name in quantized_layers(pipe.transformer) if name != LAYER)
    deploy.apply(pipe, PLAN, quantized=names)
    found = call(pipe)
    deploy.remove(pipe)
    assert torch.equal(found, by_hand(pipe, PLAN, layers=lambda _: names))


def test_a_function_in_the_place_of_all_linear_layers(
    pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = nn.Linear.forward

    def patch(_pipe: Any, _step: int, _timestep: Any, inputs: Any) -> Any:
        monkeypatch.setattr(nn.Linear, "forward", lambda self, input: original(self, input) * 2)
        return inputs

    deploy.apply(pipe, PLAN)
    several: list[dict[str, Any]] = [{"callback_on_step_end": patch}, {}]
    for options in several:
        with pytest.raises(UsageError, match=r"Linear\.forward is replaced by another function"):
            call(pipe, **options)


def test_offloading_layer_by_layer(pipe: Any) -> None:
    deploy.apply(pipe, PLAN)
    cpu_offload(pipe.transformer, torch.device("cpu"))
    with pytest.raises(UsageError, match="enable_sequential_cpu_offload"):
        call(pipe)
    remove_hook_from_submodules(pipe.transformer)
    call(pipe)
