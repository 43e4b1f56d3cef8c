"""Work counted from shapes: against hand formulas, PyTorch's own counter, published sizes."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.costs.small import SMALL
from tmpdiff_bench.costs.architectures import ARCHITECTURES, architecture
from tmpdiff_bench.costs.counting import Operation, count_operations
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.pipelines import quantized_layers


@cache
def built(model: str) -> nn.Module:
    """The true-size denoiser, on the meta device."""
    return architecture(model).build()


def test_a_linear_layer() -> None:
    layer = nn.Sequential(nn.Linear(48, 80, device="meta"))
    [found] = count_operations(layer, {"input": torch.empty(2, 5, 48, device="meta")}, ())
    assert found == Operation(
        "0", "linear", 2 * 10 * 48 * 80, 10 * 48, 48 * 80 + 80, 10 * 80, 10, 48, 80
    )


def test_a_convolution() -> None:
    layer = nn.Sequential(nn.Conv2d(6, 10, 3, stride=2, padding=1, device="meta"))
    [found] = count_operations(layer, {"input": torch.empty(2, 6, 16, 12, device="meta")}, ())
    pixels = 2 * 8 * 6
    assert (found.kind, found.flops) == ("convolution", 2 * pixels * 10 * 6 * 9)
    assert (found.inputs, found.outputs) == (2 * 6 * 16 * 12, pixels * 10)
    assert (found.rows, found.fan_in, found.fan_out) == (pixels, 54, 10)


class Attention(nn.Module):
    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        mask = torch.empty(1, 1, query.shape[-2], key.shape[-2], device=query.device)
        return F.scaled_dot_product_attention(query, key, value=value, attn_mask=mask)


def test_attention() -> None:
    query, key = (torch.empty(2, 3, n, 16, device="meta") for n in (7, 11))
    value = torch.empty(2, 3, 11, 24, device="meta")
    inputs = {"query": query, "key": key, "value": value}
    [found] = count_operations(Attention(), inputs, ())
    scores = 2 * 3 * 7 * 11
    assert (found.kind, found.flops) == ("attention", 2 * scores * 16 + 2 * scores * 24)
    assert found.inputs == sum(x.numel() for x in inputs.values())
    assert (found.weights, found.outputs) == (0, 2 * 3 * 7 * 24)


@pytest.mark.parametrize("model", ARCHITECTURES)
def test_parameter_counts_are_the_published_ones(model: str) -> None:
    """Exact: FLUX.1-dev 11,901,408,320, SD3-medium 2,028,328,000, SDXL base 2,567,463,684 and
    PixArt-Sigma XL/2 610,856,096 are the totals that their checkpoints are catalogued with.
    """
    shape = architecture(model)
    denoiser = built(model)
    assert sum(parameter.numel() for parameter in denoiser.parameters()) == shape.parameters
    assert {parameter.device.type for parameter in denoiser.parameters()} == {"meta"}


@pytest.mark.parametrize("model", ARCHITECTURES)
def test_flops_are_those_of_pytorchs_counter(model: str) -> None:
    """On a small member of each class that really runs, with attention as one operation."""
    shape = architecture(model)
    config = {**shape.config, **SMALL[model]}
    inputs = shape.call(64, 64, "cpu")
    torch.manual_seed(0)
    denoiser = shape.denoiser(**config).eval()
    with torch.device("meta"):
        ghost = shape.denoiser(**config)
    counted = count_operations(ghost, shape.call(64, 64), ())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        denoiser(**inputs)
    assert sum(operation.flops for operation in counted) == counter.get_total_flops()


@pytest.mark.parametrize("model", ARCHITECTURES)
def test_what_levels_change_lies_in_blocks(model: str) -> None:
    shape = architecture(model)
    denoiser = built(model)
    quantized = set(quantized_layers(denoiser))
    layers = {n for n, m in denoiser.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    kept = layers - quantized
    assert all(name.split(".")[0].endswith(("blocks", "mid_block")) for name in quantized)
    stays = ("norm", "time_emb_proj")
    inside = {n for n in kept if n.split(".")[0].endswith(("blocks", "mid_block"))}
    assert all(any(part.startswith(stays) for part in name.split(".")) for name in inside)
    assert not any("norm" in name or "time_emb_proj" in name for name in quantized)
    operations = count_operations(denoiser, shape.call(256, 256), quantized)
    assert {op.name for op in operations if op.quantized} == quantized
    work = sum(op.flops for op in operations if op.kind != "attention")
    assert sum(op.flops for op in operations if op.quantized) / work > 0.98


def test_an_input_is_quantized_once() -> None:
    """Query, key and value of an image, and those of the text, read one tensor each."""
    shape, denoiser = architecture("sd3"), built("sd3")
    operations = count_operations(denoiser, shape.call(256, 256), quantized_layers(denoiser))
    block = [op for op in operations if op.name.startswith("transformer_blocks.3.") and op.rows]
    first = {op.name.split(".", 2)[2] for op in block if op.first_use}
    assert {"attn.to_q", "attn.add_q_proj", "ff.net.0.proj", "ff.net.2"} <= first
    assert not {"attn.to_k", "attn.to_v", "attn.add_k_proj", "norm1.linear"} & first


@pytest.mark.parametrize("side", [0, 8, 1000, 1_000_000])
@pytest.mark.parametrize("model", ARCHITECTURES)
def test_sizes_that_a_model_does_not_take(model: str, side: int) -> None:
    with pytest.raises(UsageError, match=f"not {side}x1024"):
        architecture(model).call(1024, side)


def test_unknown_models_have_a_nearest_name() -> None:
    with pytest.raises(UsageError, match="unknown model 'fluks': did you mean 'flux'"):
        architecture("fluks")
