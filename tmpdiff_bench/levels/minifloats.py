"""Small floating-point formats: sign, exponent, mantissa, subnormals; no infinities are produced.

e4m3 and e5m2: Micikevicius et al. 2022, arXiv 2209.05433; e2m1, e2m3 and e3m2: OCP Microscaling
Formats (MX) Specification v1.0, §5.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tmpdiff_bench.levels.integers import largest


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
class _Bits:
    """How a dtype that we compute in is laid out."""

    integer: torch.dtype
    mantissa: int
    bias: int


_LAYOUT = {torch.float32: _Bits(torch.int32, 23, 127), torch.float64: _Bits(torch.int64, 52, 1023)}


def round_minifloat_(x: Tensor, kind: Minifloat) -> Tensor:
    """Round `x` (float32 or float64; contiguous) in place: to nearest, ties to even.

    |x| may exceed the format's largest number by less than its rounding takes back. The sign of
    zero is lost.
    """
    bits = _LAYOUT[x.dtype]
    # 2^e, where e is the exponent of x, at least that of the smallest normal number
    power = x.view(bits.integer).bitwise_and(_exponent_mask(bits))
    power.clamp_(min=(kind.least_exponent + bits.bias) << bits.mantissa)
    # 1.5 x 2^(e + ours - theirs): adding it pushes out the bits of the mantissa that are too many,
    # and the processor rounds them as it rounds all sums, to nearest with ties to even
    surplus = bits.mantissa - kind.mantissa
    anchor = power.add_((surplus << bits.mantissa) + (1 << (bits.mantissa - 1))).view(x.dtype)
    return x.add_(anchor).sub_(anchor)


def power_of_two(x: Tensor) -> Tensor:
    """The largest power of two that is at most x, for x > 0; 0 for subnormal x."""
    bits = _LAYOUT[x.dtype]
    return x.view(bits.integer).bitwise_and(_exponent_mask(bits)).view(x.dtype)


def round_scaled(x: Tensor, kind: Minifloat, axis: int = -1) -> Tensor:
    """`x` rounded with one scale, max |x| / largest number, along `axis`."""
    scale = largest(x, axis).div_(kind.largest)
    scale.masked_fill_(scale == 0, 1)  # a row of zeros, or of numbers too small to be divided
    return round_minifloat_(x / scale, kind).mul_(scale)


def _exponent_mask(bits: _Bits) -> int:
    return (2 * bits.bias + 1) << bits.mantissa
