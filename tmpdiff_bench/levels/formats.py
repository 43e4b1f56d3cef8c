"""Number formats: rounding a tensor to what a format can hold, exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from tmpdiff_bench.errors import unknown
from tmpdiff_bench.levels.integers import INTEGER_MAX, round_integer

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
    return round_integer(x, format, axis)
