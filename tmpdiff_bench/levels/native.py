"""Native layers: low-precision weights in memory and real low-precision kernels.

They take and return the reference's dtype, so that a denoiser calls them like its own. On CPUs
int8 runs through oneDNN's linear operator directly: torchao's eager path writes and reads the
integer products and their scaled copies several times over, and is three times slower
(`benchmarks/levels.py`). On CUDA, low precision is torchao's.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.levels.integers import integer_codes
from tmpdiff_bench.levels.level import Level
from tmpdiff_bench.levels.simulated import Shared

_CASTS = {"bf16": torch.bfloat16, "fp16": torch.float16}
# what the kernels of torchao need the sizes of a weight to be multiples of
_MULTIPLE = {"w8a8": 8, "w8a16": 1, "w4a16": 64, "fp8": 16, "mxfp8": 32, "nvfp4": 16}


def native_layer(
    layer: nn.Linear | nn.Conv2d, level: Level, shared: Shared, name: str
) -> nn.Module:
    """The native twin of a linear or convolution layer.

    Convolutions have no low-precision kernels here: at bf16 and fp16 they are cast like the rest,
    at all other levels they stay at the reference.

    Raises:
        UsageError: the layer is of a size that the kernels do not take.
    """
    if level.base in _CASTS:
        return Cast(layer, _CASTS[level.base])
    if isinstance(layer, nn.Conv2d):
        return layer
    if layer.weight.device.type == "cpu":
        return Int8Linear(layer, shared)
    if any(size % _MULTIPLE[level.base] for size in layer.weight.shape):
        raise UsageError(
            f"layer {name} is {tuple(layer.weight.shape)}: the kernels of {level} take multiples "
            f"of {_MULTIPLE[level.base]} only"
        )
    return Cast(torchao_linear(layer, level), torch.bfloat16)


class Cast(nn.Module):
    """A layer that runs in another dtype than its surroundings."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self._layer = _in_dtype(layer, dtype)
        self._dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self._layer(x.to(self._dtype)).to(x.dtype)
        return output


class Int8Linear(nn.Module):
    """A linear layer of int8 products on a CPU, summed in int32.

    Codes and scales are those of the simulated `w8a8`: results differ from it only by float32
    rounding of the sums. Scales are per output channel and per token.
    """

    packed: Tensor
    scale: Tensor
    zero: Tensor

    def __init__(self, layer: nn.Linear, inputs: Shared) -> None:
        super().__init__()
        codes, scale = integer_codes(layer.weight.detach().float(), "int8")
        self.register_buffer("packed", pack(codes.to(torch.int8)))
        self.register_buffer("scale", scale.flatten())
        self.register_buffer("zero", torch.zeros(len(scale), dtype=torch.int64))
        self.bias = layer.bias
        self._inputs = inputs

    def forward(self, x: Tensor) -> Tensor:
        codes, scale = self._inputs(x)
        # the operator knows one scale for all inputs: rows get theirs afterwards, with the bias
        y = torch.ops.onednn.qlinear_pointwise(
            *(codes, 1.0, 0, self.packed, self.scale, self.zero),
            *(None, 1.0, 0, torch.float32, "none", [], ""),
        )
        if self.bias is None:
            y.mul_(scale)
        else:
            torch.addcmul(self.bias.detach().float(), y, scale, out=y)
        output: Tensor = y.view(*x.shape[:-1], -1).to(x.dtype)
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


def torchao_linear(layer: nn.Linear, level: Level) -> nn.Module:
    """A copy of a linear layer whose weight is torchao's low-precision tensor; CUDA only."""
    from torchao.quantization import quantize_

    alone = nn.Sequential(_in_dtype(layer, torch.bfloat16))
    quantize_(alone, torchao_config(level))
    return alone[0]


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


def _in_dtype(layer: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A twin of a layer in another dtype; parameters that have it already are shared."""
    twin = copy.copy(layer)
    twin._parameters = {
        name: None if p is None else nn.Parameter(p.detach().to(dtype), requires_grad=False)
        for name, p in layer._parameters.items()
    }
    return twin
