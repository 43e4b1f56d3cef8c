"""Number formats: rounding a tensor to what a format can hold, exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from tmpdiff_bench.errors import UsageError, unknown
from tmpdiff_bench.levels.integers import INTEGER_MAX, round_integer
from tmpdiff_bench.levels.microscaling import MX, round_mx, round_nvfp4
from tmpdiff_bench.levels.minifloats import ROW_SCALED, round_scaled

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
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
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
        return _blocks(wide.movedim(axis, -1), format, whole).movedim(-1, axis).to(x.dtype)
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


def _blocks(x: Tensor, format: str, whole: bool) -> Tensor:
    return round_nvfp4(x, whole=whole) if format == "nvfp4" else round_mx(x, format)
