"""Native layers: low-precision weights in memory and real low-precision kernels.

They take and return the reference's dtype, so that a denoiser calls them like its own. On CPUs
int8 runs through oneDNN's linear operator directly: torchao's eager path writes and reads the
integer products and their scaled copies several times over, and is three times slower
(`benchmarks/levels.py`). On CUDA, low precision is torchao's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.levels.formats import CASTS, integer_codes
from tmpdiff_bench.levels.leaf import Leaf
from tmpdiff_bench.levels.level import Level
from tmpdiff_bench.levels.simulated import Shared

# what the kernels of torchao need the sizes of a weight to be multiples of
_MULTIPLE = {"w8a8": 8, "w8a16": 1, "w4a16": 64, "fp8": 16, "mxfp8": 32, "nvfp4": 16}


def native_layer(layer: nn.Module, level: Level, shared: Shared, name: str) -> Leaf | None:
    """A linear or convolution layer at a native level; None where it stays as it is.

    Convolutions have no low-precision kernels here: at bf16 and fp16 they are cast like the rest,
    at all other levels they stay at the reference.

    Raises:
        UsageError: the layer is of a size that the kernels do not take.
    """
    if level.base in CASTS:
        return Cast(layer, CASTS[level.base])
    if not isinstance(layer, nn.Linear):
        return None
    if layer.weight.device.type == "cpu":
        return Int8Linear(layer, shared)
    if any(size % _MULTIPLE[level.base] for size in layer.weight.shape):
        raise UsageError(
            f"layer {name} is {tuple(layer.weight.shape)}: the kernels of {level} take multiples "
            f"of {_MULTIPLE[level.base]} only"
        )
    return Cast(layer, torch.bfloat16, torchao_weight(layer, level))


class Cast(Leaf):
    """A layer that runs in another dtype than what is around it, with another weight if given."""

    layer: Any

    def __init__(self, layer: nn.Module, dtype: torch.dtype, weight: Tensor | None = None) -> None:
        own, bias = layer.weight, layer.bias
        assert isinstance(own, Tensor)
        cast = bias.detach().to(dtype) if isinstance(bias, Tensor) else None
        super().__init__(
            layer, weight=own.detach().to(dtype) if weight is None else weight, cast_bias=cast
        )
        self._dtype = dtype
        self._linear = isinstance(layer, nn.Linear)

    def forward(self, input: Tensor) -> Tensor:
        weight = self.tensor("weight", input)
        bias = self.tensor("cast_bias", input) if "cast_bias" in self.own else None
        compute = F.linear if self._linear else self.layer._conv_forward
        output: Tensor = compute(input.to(self._dtype), weight, bias).to(input.dtype)
        return output


class Int8Linear(Leaf):
    """A linear layer of int8 products on a CPU, summed in int32.

    Codes and scales are those of the simulated `w8a8`: results differ from it only by float32
    rounding of the sums. Scales are per output channel and per token.
    """

    def __init__(self, layer: nn.Linear, inputs: Shared) -> None:
        codes, scale = integer_codes(layer.weight.detach().float(), "int8")
        zero = torch.zeros(len(scale), dtype=torch.int64)
        super().__init__(layer, packed=pack(codes.to(torch.int8)), scale=scale.flatten(), zero=zero)
        self._inputs = inputs

    def forward(self, input: Tensor) -> Tensor:
        codes, scale = self._inputs(input)
        # the operator knows one scale for all inputs: rows get theirs afterwards, with the bias
        y = torch.ops.onednn.qlinear_pointwise(
            *(codes, 1.0, 0, self.own["packed"], self.own["scale"], self.own["zero"]),
            *(None, 1.0, 0, torch.float32, "none", [], ""),
        )
        bias = self.bias_for(input)
        if bias is None:
            y.mul_(scale)
        else:
            torch.addcmul(bias.detach().float(), y, scale, out=y)
        output: Tensor = y.view(*input.shape[:-1], -1).to(input.dtype)
        return output


def pack(codes: Tensor) -> Tensor:
    """int8 codes (out, in) in the layout of oneDNN's kernels."""
    packed: Tensor = torch.ops.onednn.qlinear_prepack(codes, None)
    return packed


def unpack(packed: Tensor) -> Tensor:
    """The codes (out, in) of a packed weight."""
    return packed.to_dense().t().contiguous()


def int8_inputs(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes (rows, features) of inputs (..., features), and a scale for each row (rows, 1)."""
    codes, scale = integer_codes(x.reshape(-1, x.shape[-1]).float(), "int8")
    return codes.to(torch.int8), scale


def torchao_weight(layer: nn.Linear, level: Level) -> Tensor:
    """The weight of a linear layer as torchao's low-precision tensor; CUDA only."""
    from torchao.quantization import quantize_

    bare = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    bare.weight = nn.Parameter(layer.weight.detach().to(torch.bfloat16), requires_grad=False)
    alone = nn.Sequential(bare)
    quantize_(alone, torchao_config(level))
    return bare.weight


def torchao_config(level: Level) -> Any:
    """The configuration of torchao for a level. None of them changes inductor's settings: those are
    global, and would be felt by whatever is compiled and timed afterwards.
    """
    from torchao import quantization as ao

    quiet = {"set_inductor_config": False}
    if level.base == "w8a8":
        return ao.Int8DynamicActivationInt8WeightConfig(**quiet)
    if level.base == "w8a16":
        return ao.Int8WeightOnlyConfig(**quiet)
    if level.base == "fp8":
        return ao.Float8DynamicActivationFloat8WeightConfig(granularity=ao.PerRow(), **quiet)
    if level.base == "w4a16":
        return ao.Int4WeightOnlyConfig(
            group_size=64, int4_packing_format="tile_packed_to_4d", **quiet
        )
    from torchao.prototype import mx_formats as mx

    if level.base == "mxfp8":
        from torchao.prototype.mx_formats.config import ScaleCalculationMode

        # the scales of the OCP specification, which the simulated level has as well
        return mx.MXDynamicActivationMXWeightConfig(scaling_mode=ScaleCalculationMode.FLOOR)
    # one scale for the whole input would couple the samples of a batch: blocks have theirs
    return mx.NVFP4DynamicActivationNVFP4WeightConfig(
        use_triton_kernel=False, use_dynamic_per_tensor_scale=False
    )
