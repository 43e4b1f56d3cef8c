"""Symmetric integers: round to nearest with ties to even, and never the most negative code
(Nagel et al. 2021, "A White Paper on Neural Network Quantization", §2.2).
"""

from __future__ import annotations

import torch
from torch import Tensor

INTEGER_MAX = {"int4": 7, "int6": 31, "int8": 127}


def largest(x: Tensor, axis: int = -1) -> Tensor:
    """The largest |x| along `axis`, which is kept with one element."""
    # two reductions read x twice, but |x| as a tensor of its own would cost more than that
    return torch.maximum(x.amax(axis, keepdim=True), x.amin(axis, keepdim=True).neg_())


def integer_codes(x: Tensor, format: str, axis: int = -1) -> tuple[Tensor, Tensor]:
    """Codes, in the dtype of `x`, and their scales max |x| / qmax along `axis`.

    A row of zeros has scale 1.
    """
    scale = largest(x, axis).div_(INTEGER_MAX[format])
    # a row of zeros: any scale gives zeros, but zero itself would give NaN
    scale.masked_fill_(scale == 0, 1)
    return (x / scale).round_(), scale


def round_integer(x: Tensor, format: str, axis: int = -1) -> Tensor:
    """`x` rounded to codes times scales."""
    codes, scale = integer_codes(x, format, axis)
    return codes.mul_(scale)
