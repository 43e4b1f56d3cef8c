"""Block formats: small floats that share a scale over a short run of elements.

MX formats have blocks of 32 with a power of two (e8m0) as scale, chosen as in §6.3 of the OCP
Microscaling Formats (MX) Specification v1.0. nvfp4 has blocks of 16 with an e4m3 scale, and a
float32 scale above those (Alvarez et al. 2025, "Introducing NVFP4"; the order of operations is that
of torchao's `nvfp4_quantize`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tmpdiff_bench.levels.minifloats import (
    E2M1,
    E2M3,
    E3M2,
    E4M3,
    LAYOUT,
    Minifloat,
    exponents,
    round_at,
    round_minifloat_,
)

MX = {"mxfp8": E4M3, "mxfp6": E2M3, "mxfp6_e3m2": E3M2, "mxfp4": E2M1}
MX_BLOCK, NVFP4_BLOCK = 32, 16
_E8M0 = 127  # exponents of scales are from minus to plus this
# biased exponents of float32 beyond which intermediate results leave its range
_LOW, _HIGH = 20, 220
_LEAST_NORMAL = 2.0**E4M3.least_exponent


def round_mx(x: Tensor, format: str) -> Tensor:
    """`x` (..., n) rounded in blocks of 32 along the last axis; the last block may be shorter.

    The scale is the power of two of the block's largest element over that of the format's largest
    number, so elements close to the former may saturate.
    """
    kind = MX[format]
    return _in_blocks(x, MX_BLOCK, lambda blocks: _round_mx_blocks(blocks, kind))


def _round_mx_blocks(x: Tensor, kind: Minifloat) -> Tensor:
    # scales are powers of two, so nothing has to be scaled: only the exponent below which numbers
    # are subnormal, and the largest number, are the block's
    bits = LAYOUT[x.dtype]
    power = exponents(x)
    highest = power.amax(-1, keepdim=True) >> bits.mantissa
    if x.dtype == torch.float32 and (((highest > 0) & (highest < _LOW)) | (highest > _HIGH)).any():
        return _round_mx_blocks(x.double(), kind).to(x.dtype)
    top = math.frexp(kind.largest)[1] - 1
    scale = highest.sub_(bits.bias + top).clamp_(-_E8M0, _E8M0).add_(bits.bias)
    least = (scale + kind.least_exponent) << bits.mantissa
    rounded = round_at(x, torch.maximum(power, least, out=power).view(x.dtype), kind)
    limit = (scale << bits.mantissa).view(x.dtype).mul_(kind.largest)
    # two passes, but `clamp` with tensors as bounds takes four times as long as one of these
    torch.minimum(rounded, limit, out=rounded)
    return torch.maximum(rounded, limit.neg_(), out=rounded)


def round_nvfp4(x: Tensor, *, whole: bool = False) -> Tensor:
    """`x` (..., n) rounded in blocks of 16 along the last axis; the last block may be shorter.

    The outer scale spans a row, or, with `whole`, all of `x`, as in a weight. In activations that
    would make the samples of a batch depend on one another.
    """

    def blocks(x: Tensor) -> Tensor:
        # pooling is three times faster than a reduction over runs as short as these
        pooled = F.max_pool1d(x.abs().flatten(-2).flatten(0, -2), NVFP4_BLOCK)
        amax = pooled.view(*x.shape[:-1], 1)
        outer = amax.amax() if whole else amax.amax(-2, keepdim=True)
        outer.div_(E4M3.largest * E2M1.largest)
        outer.masked_fill_(outer == 0, 1)
        inner = amax.div_(E2M1.largest).div_(outer).clamp_(_LEAST_NORMAL, E4M3.largest)
        round_minifloat_(inner, E4M3)
        # the inner scale is at most 1/16 too small: what it lets exceed 6 is rounded back to 6
        rounded = round_minifloat_(x * (outer.reciprocal() / inner), E2M1)
        return rounded.mul_(inner.mul_(outer))

    return _in_blocks(x, NVFP4_BLOCK, blocks)


def _in_blocks(x: Tensor, size: int, function: Callable[[Tensor], Tensor]) -> Tensor:
    """`function` of `x` (..., n) cut into blocks (..., n / size, size); zeros fill the last one."""
    length = x.shape[-1]
    lacking = math.ceil(length / size) * size - length
    if lacking:
        x = F.pad(x, (0, lacking))
    return function(x.unflatten(-1, (-1, size))).flatten(-2)[..., :length]
