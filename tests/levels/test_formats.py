"""Formats against tables made from their definitions, ml_dtypes, numpy and torchao."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torch import Tensor

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.levels import FORMATS, quantize_dequantize
from tmpdiff_bench.levels.formats import (
    E2M1,
    E2M3,
    E3M2,
    E4M3,
    E5M2,
    INTEGER_MAX,
    MX,
    ROW_SCALED,
    Minifloat,
    round_minifloat_,
)

# far enough from the end of float32 that powers of two can be taken out
elements = st.floats(-1e4, 1e4, width=32).map(lambda x: x if abs(x) > 1e-20 else 0.0)
rows = npst.arrays(np.float32, (3, 40), elements=elements)
# (exponent bits, mantissa bits, codes at the top that are no numbers), as the specifications say
TABLES = {
    "e4m3": (E4M3, 4, 3, 1, ml_dtypes.float8_e4m3fn),
    "e5m2": (E5M2, 5, 2, 4, ml_dtypes.float8_e5m2),
    "e2m1": (E2M1, 2, 1, 0, ml_dtypes.float4_e2m1fn),
    "e2m3": (E2M3, 2, 3, 0, ml_dtypes.float6_e2m3fn),
    "e3m2": (E3M2, 3, 2, 0, ml_dtypes.float6_e3m2fn),
}


def code_points(exponent_bits: int, mantissa_bits: int, special: int) -> list[Fraction]:
    """All numbers >= 0 of a format in the order of their codes, from its definition."""
    bias = 2 ** (exponent_bits - 1) - 1
    found = []
    for code in range(2 ** (exponent_bits + mantissa_bits) - special):
        exponent, mantissa = divmod(code, 2**mantissa_bits)
        fraction = Fraction(mantissa, 2**mantissa_bits) + (exponent > 0)
        found.append(fraction * Fraction(2) ** (max(exponent, 1) - bias))
    return found


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_minifloats_at_and_between_all_code_points(name: str, dtype: torch.dtype) -> None:
    """Every code point is kept; midpoints go to the even code, what is beside them to the near."""
    kind, exponent_bits, mantissa_bits, special, _ = TABLES[name]
    points = code_points(exponent_bits, mantissa_bits, special)
    assert float(points[-1]) == kind.largest
    inputs, expected = list(map(float, points)), list(map(float, points))
    for code, (low, high) in enumerate(itertools.pairwise(points)):
        middle, near = (low + high) / 2, (high - low) / 1024
        even = high if code % 2 else low
        inputs += [float(middle), float(middle - near), float(middle + near)]
        expected += [float(even), float(low), float(high)]
    x, y = torch.tensor(inputs, dtype=dtype), torch.tensor(expected, dtype=dtype)
    assert torch.equal(round_minifloat_(x.clone(), kind), y)
    assert torch.equal(round_minifloat_(-x, kind), -y)


@pytest.mark.parametrize("name", TABLES)
@settings(deadline=None, max_examples=30)
@given(x=rows, scale=st.integers(-30, 10))
def test_minifloats_against_ml_dtypes(name: str, x: np.ndarray, scale: int) -> None:
    kind, *_, dtype = TABLES[name]
    x = np.clip(np.ldexp(x, scale), -kind.largest, kind.largest)
    expected = x.astype(dtype).astype(np.float32)
    assert np.array_equal(round_minifloat_(torch.from_numpy(x.copy()), kind).numpy(), expected)


def test_minifloats_against_the_casts_of_torch() -> None:
    """All 2^16 numbers of bfloat16 that are in range."""
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.uint16)
    x = bits.view(torch.bfloat16).float()
    for kind, dtype in ((E4M3, torch.float8_e4m3fn), (E5M2, torch.float8_e5m2)):
        inside = x[x.abs() <= kind.largest]
        assert len(inside) > 30_000
        assert torch.equal(round_minifloat_(inside.clone(), kind), inside.to(dtype).float())


@pytest.mark.parametrize("name", INTEGER_MAX)
def test_integer_code_points_are_kept(name: str) -> None:
    """Every code times a power of two is its own rounding, bit for bit."""
    top = INTEGER_MAX[name]
    codes = torch.arange(-top, top + 1, dtype=torch.float32)
    for exponent in (-9, 0, 5):
        x = codes * 2.0**exponent
        assert torch.equal(quantize_dequantize(x, name), x)


@pytest.mark.parametrize("name", INTEGER_MAX)
@settings(deadline=None, max_examples=30)
@given(x=rows)
def test_integers_round_to_nearest_even(name: str, x: np.ndarray) -> None:
    """Against numpy's rint, in the same order of operations."""
    top = np.float32(INTEGER_MAX[name])
    scale = (np.abs(x).max(1, keepdims=True) / top).astype(np.float32)
    scale[scale == 0] = 1
    expected = np.rint(x / scale) * scale
    found = quantize_dequantize(torch.from_numpy(x.copy()), name).numpy()
    assert np.array_equal(found, expected)


def test_ties_go_to_even() -> None:
    x = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5])
    assert quantize_dequantize(x, "int8").tolist() == [127, 0, 2, 2, 0, -2, -2]


@pytest.mark.parametrize("name", ROW_SCALED)
@settings(deadline=None, max_examples=30)
@given(x=rows)
def test_fp8_against_torch(name: str, x: np.ndarray) -> None:
    dtype = {"fp8": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}[name]
    t = torch.from_numpy(x.copy())
    scale = t.abs().amax(1, keepdim=True) / torch.finfo(dtype).max
    scale[scale == 0] = 1
    assert torch.equal(quantize_dequantize(t, name), (t / scale).to(dtype).float() * scale)


def mx_by_definition(block: np.ndarray, name: str) -> list[float]:
    """One block, element by element, in exact arithmetic (OCP MX v1.0, §6.3)."""
    kind = MX[name]
    table = next(t for t in TABLES.values() if t[0] is kind)
    points = code_points(*table[1:4])
    largest = max(map(Fraction, map(float, np.abs(block))))
    if not largest:
        return [0.0] * len(block)
    exponent = largest.numerator.bit_length() - largest.denominator.bit_length()
    exponent -= Fraction(2) ** exponent > largest
    top = int(np.floor(np.log2(kind.largest)))
    scale = Fraction(2) ** max(-127, min(127, exponent - top))
    found = []
    for value in map(Fraction, map(float, block)):
        distance = [abs(abs(value) / scale - point) for point in points]
        nearest = [code for code, d in enumerate(distance) if d == min(distance)]
        code = next((c for c in nearest if c % 2 == 0), nearest[0])
        found.append(float(points[code] * scale) * (-1 if value < 0 else 1))
    return found


@pytest.mark.parametrize("name", MX)
@settings(deadline=None, max_examples=8)
@given(
    x=npst.arrays(np.float32, 40, elements=st.floats(-6, 6, width=32, allow_subnormal=False)),
    scale=st.integers(-140, 110),
)
def test_mx_by_definition(name: str, x: np.ndarray, scale: int) -> None:
    """A whole block and a short one."""
    x = np.ldexp(x, scale)
    x[np.abs(x) < np.finfo(np.float32).tiny] = 0
    expected = mx_by_definition(x[:32], name) + mx_by_definition(x[32:], name)
    assert quantize_dequantize(torch.from_numpy(x), name).tolist() == expected


@pytest.fixture
def wild() -> Tensor:
    """A matrix of many orders of magnitude, with a row and blocks of zeros."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 256, generator=generator)
    x *= torch.exp(3 * torch.randn(64, 256, generator=generator))
    x[3], x[5, :32] = 0, 0
    return x


def torchao_mx() -> Iterator[tuple[str, object]]:
    from torchao.prototype.mx_formats import constants

    yield "mxfp8", torch.float8_e4m3fn
    yield "mxfp6", constants.DTYPE_FP6_E2M3
    yield "mxfp6_e3m2", constants.DTYPE_FP6_E3M2
    yield "mxfp4", torch.float4_e2m1fn_x2


def test_mx_against_torchao(wild: Tensor) -> None:
    from torchao.prototype.mx_formats.mx_tensor import MXTensor, ScaleCalculationMode

    for name, element in torchao_mx():
        theirs = MXTensor.to_mx(wild, element, 32, ScaleCalculationMode.FLOOR)
        assert torch.equal(quantize_dequantize(wild, name), theirs.dequantize(torch.float32))


def test_nvfp4_against_torchao(wild: Tensor) -> None:
    from torchao.prototype.mx_formats import kernels
    from torchao.prototype.mx_formats.nvfp4_tensor import nvfp4_quantize, per_tensor_amax_to_scale

    def theirs(x: Tensor) -> Tensor:
        outer = per_tensor_amax_to_scale(x.abs().max())
        inner, packed = nvfp4_quantize(x, 16, outer)
        values = kernels.f4_unpacked_to_f32(kernels.unpack_uint4(packed))
        scale = (inner.float() * outer).unsqueeze(-1)
        return (values.view(len(x), -1, 16) * scale).view_as(x)

    assert torch.equal(quantize_dequantize(wild, "nvfp4", whole=True), theirs(wild))
    by_row = [theirs(row.unsqueeze(0)) for row in wild if row.any()]
    kept = wild[wild.any(1)]
    assert torch.equal(quantize_dequantize(kept, "nvfp4"), torch.cat(by_row))


@settings(deadline=None, max_examples=100)
@given(x=rows, name=st.sampled_from(FORMATS), power=st.integers(-8, 8))
def test_properties(x: np.ndarray, name: str, power: int) -> None:
    """Odd, bounded, monotone within a row of one scale, equivariant to powers of two."""
    t = torch.from_numpy(x.copy())
    y = quantize_dequantize(t, name)
    assert torch.equal(quantize_dequantize(-t, name), -y)
    if name == "fp16":  # overflows, and has subnormals in reach
        return
    assert torch.isfinite(y).all()
    assert torch.equal(quantize_dequantize(t * 2.0**power, name), y * 2.0**power)
    length = {"nvfp4": 16}.get(name, 32 if name in MX else t.shape[1])
    for start in range(0, t.shape[1], length):
        order = t[:, start : start + length].argsort(dim=1)
        along = y[:, start : start + length].gather(1, order)
        assert (along.diff(dim=1) >= 0).all()
    if name in INTEGER_MAX:
        half_step = t.abs().amax(-1, keepdim=True) / INTEGER_MAX[name] / 2
        assert ((y - t).abs() <= half_step * (1 + 1e-4)).all()


@settings(deadline=None, max_examples=100)
@given(
    x=rows,
    name=st.sampled_from(FORMATS),
    powers=st.lists(st.integers(-100, 100), min_size=3, max_size=3),
)
def test_a_row_does_not_depend_on_the_others(x: np.ndarray, name: str, powers: list[int]) -> None:
    """Recorded runs rely on it: whatever else is in the batch, even numbers that need another
    arithmetic (MX far from 1 is rounded in float64), changes no bit.
    """
    t = torch.from_numpy(np.ldexp(x, np.array(powers)[:, None]))
    together = quantize_dequantize(t, name)
    for i in range(len(t)):
        assert torch.equal(quantize_dequantize(t[i : i + 1], name)[0], together[i])


@settings(deadline=None, max_examples=100)
@given(x=rows, name=st.sampled_from([f for f in FORMATS if f != "nvfp4"]))
def test_rounding_twice_changes_nothing_more(x: np.ndarray, name: str) -> None:
    """Exactly where scales are powers of two or none; otherwise up to float32 rounding of scales.

    nvfp4 is not idempotent: the largest element of a block need not be the largest code, so a
    second rounding finds another scale.
    """
    y = quantize_dequantize(torch.from_numpy(x.copy()), name)
    again = quantize_dequantize(y, name)
    if name in INTEGER_MAX or name in ROW_SCALED:
        assert torch.allclose(again, y, rtol=1e-5, atol=0)
    elif name != "fp16":
        assert torch.equal(again, y)


@pytest.mark.parametrize("name", FORMATS)
def test_other_axes_and_16_bit_tensors(name: str, wild: Tensor) -> None:
    assert torch.equal(
        quantize_dequantize(wild.T.contiguous(), name, axis=0), quantize_dequantize(wild, name).T
    )
    half = wild.bfloat16()
    found = quantize_dequantize(half, name)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, quantize_dequantize(half.float(), name).bfloat16())


@pytest.mark.parametrize("name", ["int4", "fp8"])
def test_groups_are_rounded_alone(name: str) -> None:
    x = torch.randn(5, 150, generator=torch.Generator().manual_seed(0))
    found = quantize_dequantize(x, name, group=64)
    for start, stop in ((0, 64), (64, 128), (128, 150)):
        assert torch.equal(found[:, start:stop], quantize_dequantize(x[:, start:stop], name))


def test_what_has_no_effect_is_refused() -> None:
    x = torch.ones(2, 64)
    with pytest.raises(UsageError, match="unknown format 'int3'"):
        quantize_dequantize(x, "int3")
    with pytest.raises(UsageError, match="mxfp4 takes no group"):
        quantize_dequantize(x, "mxfp4", group=16)
    with pytest.raises(UsageError, match="int8 has no scale over a whole tensor"):
        quantize_dequantize(x, "int8", whole=True)


def test_the_table_is_of_the_format_it_claims() -> None:
    """Guards the tables themselves: counts and ends from the specifications' own lists."""
    found = {name: code_points(*table[1:4]) for name, table in TABLES.items()}
    assert {name: len(points) for name, points in found.items()} == {
        **{"e4m3": 127, "e5m2": 124},
        **{"e2m1": 8, "e2m3": 32, "e3m2": 32},
    }
    assert list(map(float, found["e2m1"])) == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert isinstance(TABLES["e2m1"][0], Minifloat)
