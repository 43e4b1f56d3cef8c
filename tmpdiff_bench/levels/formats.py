"""Number formats: rounding a tensor to what a format can hold, exactly.

Symmetric integers round to nearest with ties to even, and never to the most negative code (Nagel et
al. 2021, "A White Paper on Neural Network Quantization", §2.2). Small floats have sign, exponent,
mantissa and subnormals, and no infinities: e4m3 and e5m2 of Micikevicius et al. 2022, arXiv
2209.05433; e2m1, e2m3 and e3m2 of the OCP Microscaling Formats (MX) Specification v1.0, §5.3. MX
formats have blocks of 32 with a power of two (e8m0) as scale, chosen as in §6.3 there. nvfp4 has
blocks of 16 with an e4m3 scale, and a float32 scale above those (Alvarez et al. 2025, "Introducing
NVFP4"; the order of operations is that of torchao's `nvfp4_quantize`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tmpdiff_bench.errors import UsageError, check_known

INTEGER_MAX = {"int4": 7, "int6": 31, "int8": 127}


def largest(x: Tensor, axis: int = -1) -> Tensor:
    """The largest |x| along `axis`, which is kept with one element."""
    # two reductions read x twice, but |x| as a tensor of its own would cost more than that
    return torch.maximum(x.amax(axis, keepdim=True), x.amin(axis, keepdim=True).neg_())


def divided_(x: Tensor, number: float) -> Tensor:
    """`x` divided in place, rounded once: CUDA multiplies by the reciprocal of a Python number."""
    return x.div_(x.new_full((), number))


def integer_codes(x: Tensor, format: str, axis: int = -1) -> tuple[Tensor, Tensor]:
    """Codes, in the dtype of `x`, and their scales max |x| / qmax along `axis`.

    A row of zeros has scale 1.
    """
    scale = divided_(largest(x, axis), INTEGER_MAX[format])
    # a row of zeros: any scale gives zeros, but zero itself would give NaN
    scale.masked_fill_(scale == 0, 1)
    return (x / scale).round_(), scale


def round_integer(x: Tensor, format: str, axis: int = -1) -> Tensor:
    """`x` rounded to codes times scales."""
    codes, scale = integer_codes(x, format, axis)
    return codes.mul_(scale)


@dataclass(frozen=True)
class Minifloat:
    """Mantissa bits, exponent of the smallest normal number, and the largest number."""

    mantissa: int
    least_exponent: int
    largest: float


E4M3 = Minifloat(3, -6, 448.0)
E5M2 = Minifloat(2, -14, 57344.0)
E2M1 = Minifloat(1, 0, 6.0)
E2M3 = Minifloat(3, 0, 7.5)
E3M2 = Minifloat(2, -2, 28.0)
ROW_SCALED = {"fp8": E4M3, "fp8_e5m2": E5M2}


@dataclass(frozen=True)
class Bits:
    """How a dtype that we compute in is laid out."""

    integer: torch.dtype
    mantissa: int
    bias: int


LAYOUT = {torch.float32: Bits(torch.int32, 23, 127), torch.float64: Bits(torch.int64, 52, 1023)}


def round_minifloat_(x: Tensor, kind: Minifloat) -> Tensor:
    """Round `x` (float32 or float64; contiguous) in place: to nearest, ties to even.

    |x| may exceed the format's largest number by less than its rounding takes back. The sign of
    zero is lost.
    """
    bits = LAYOUT[x.dtype]
    power = exponents(x).clamp_(min=(kind.least_exponent + bits.bias) << bits.mantissa)
    return round_at(x, power.view(x.dtype), kind, out=x)


def round_at(x: Tensor, power: Tensor, kind: Minifloat, out: Tensor | None = None) -> Tensor:
    """`x` rounded to the mantissa of `kind`, where the leading bit of each element is `power`, 2^e:
    to nearest, ties to even.
    """
    # adding 1.5 x 2^(e + ours - theirs) pushes out the bits of the mantissa that are too many, and
    # the processor rounds them as it rounds all sums; the anchor itself needs no pass over memory
    anchor = 1.5 * 2.0 ** (LAYOUT[x.dtype].mantissa - kind.mantissa)
    return torch.add(x, power, alpha=anchor, out=out).sub_(power, alpha=anchor)


def exponents(x: Tensor) -> Tensor:
    """The bits of 2^e, as integers, where e is the exponent of x; 0 for zero and subnormals."""
    bits = LAYOUT[x.dtype]
    return x.view(bits.integer).bitwise_and((2 * bits.bias + 1) << bits.mantissa)


def round_scaled(x: Tensor, kind: Minifloat, axis: int = -1) -> Tensor:
    """`x` rounded with one scale, max |x| / largest number, along `axis`."""
    scale = divided_(largest(x, axis), kind.largest)
    scale.masked_fill_(scale == 0, 1)  # a row of zeros, or of numbers too small to be divided
    return round_minifloat_(x / scale, kind).mul_(scale)


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
        divided_(outer, E4M3.largest * E2M1.largest)
        outer.masked_fill_(outer == 0, 1)
        inner = divided_(amax, E2M1.largest).div_(outer).clamp_(_LEAST_NORMAL, E4M3.largest)
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


CASTS = {"bf16": torch.bfloat16, "fp16": torch.float16}
BLOCK_SCALED = (*MX, "nvfp4")
FORMATS = (*INTEGER_MAX, *ROW_SCALED, *BLOCK_SCALED, *CASTS, "fp32")


def quantize_dequantize(
    x: Tensor, format: str, *, axis: int = -1, group: int | None = None, whole: bool = False
) -> Tensor:
    """Round `x` to `format` and back, in the dtype of `x`: to nearest, with ties to even.

    Integer formats and fp8 share one scale, the one that lets max |x| be the largest code, along
    the whole of `axis`, or along each run of `group` elements of it (the last run may be shorter).
    A row of zeros stays zero. Block formats have their own runs along `axis`; nvfp4's outer scale
    spans `axis`, or with `whole` all of `x`. All of these saturate; bf16 and fp16 are plain casts,
    and large numbers become infinite in fp16. Tensors of 16 bits are rounded in float32 arithmetic.
    mxfp6 is e2m3, the variant of more mantissa; mxfp6_e3m2 is the other.

    Raises:
        UsageError: the format is unknown, or has no scale that `group` or `whole` could be about.
    """
    check_known("format", format, FORMATS)
    if group is not None and format not in INTEGER_MAX and format not in ROW_SCALED:
        raise UsageError(
            f"{format} takes no group: only integers and fp8 have scales of any length"
        )
    if whole and format != "nvfp4":
        raise UsageError(f"{format} has no scale over a whole tensor: only nvfp4 has")
    if format == "fp32":
        return x
    if format in CASTS:
        return x.to(CASTS[format]).to(x.dtype)
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    if format in BLOCK_SCALED:
        moved = wide.movedim(axis, -1)
        rounded = round_nvfp4(moved, whole=whole) if format == "nvfp4" else round_mx(moved, format)
        return rounded.movedim(-1, axis).to(x.dtype)
    if group is not None and x.shape[axis] > group:
        parts = wide.split(group, dim=axis)
        rounded = torch.cat([_rows(part, format, axis) for part in parts], dim=axis)
    else:
        rounded = _rows(wide, format, axis)
    return rounded.to(x.dtype)


def _rows(x: Tensor, format: str, axis: int) -> Tensor:
    if format in INTEGER_MAX:
        return round_integer(x, format, axis)
    return round_scaled(x, ROW_SCALED[format], axis)
