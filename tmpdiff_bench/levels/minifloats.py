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
    scale = largest(x, axis).div_(kind.largest)
    scale.masked_fill_(scale == 0, 1)  # a row of zeros, or of numbers too small to be divided
    return round_minifloat_(x / scale, kind).mul_(scale)
