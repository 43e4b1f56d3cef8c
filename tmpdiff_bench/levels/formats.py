"""Number formats: rounding a tensor to what a format can hold, exactly.

Integers are symmetric, round to nearest with ties to even, and never use the most negative code
(Nagel et al. 2021, "A White Paper on Neural Network Quantization", §2.2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tmpdiff_bench.errors import unknown

INTEGER_MAX = {"int4": 7, "int6": 31, "int8": 127}
_CASTS = {"bf16": torch.bfloat16, "fp16": torch.float16}
FORMATS = (*INTEGER_MAX, *_CASTS, "fp32")


def quantize_dequantize(
    x: Tensor, format: str, *, axis: int = -1, group: int | None = None
) -> Tensor:
    """Round `x` to `format` and back, in the dtype of `x`.

    Integer formats share one scale, max |x| / qmax, along the whole of `axis`, or along each run of
    `group` elements of it (the last run may be shorter). A row of zeros stays zero.

    Raises:
        UsageError: the format is unknown.
    """
    if format == "fp32":
        return x
    if format in _CASTS:
        return x.to(_CASTS[format]).to(x.dtype)
    if format not in INTEGER_MAX:
        raise unknown("format", format, FORMATS)
    if group is not None and x.shape[axis] > group:
        parts = x.split(group, dim=axis)
        return torch.cat([quantize_dequantize(p, format, axis=axis) for p in parts], dim=axis)
    scale = x.abs().amax(dim=axis, keepdim=True).div_(INTEGER_MAX[format])
    # a row of zeros: any scale gives zeros, but zero itself would give NaN
    scale.masked_fill_(scale == 0, 1)
    return (x / scale).round_().mul_(scale)
