"""Formats against tables and independent arithmetic; levels; the bank's sharing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torch import nn

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.levels import LEVEL_NAMES, Level, LevelBank, quantize_dequantize
from tmpdiff_bench.levels.formats import FORMATS
from tmpdiff_bench.levels.integers import INTEGER_MAX

rows = npst.arrays(
    np.float32, (3, 20), elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False)
)


@pytest.mark.parametrize("name", INTEGER_MAX)
def test_integer_code_points_are_kept(name: str) -> None:
    """Every code times a power of two is its own rounding, bit for bit."""
    top = INTEGER_MAX[name]
    codes = torch.arange(-top, top + 1, dtype=torch.float32)
    for exponent in (-9, 0, 5):
        x = codes * 2.0**exponent
        assert torch.equal(quantize_dequantize(x, name), x)


@pytest.mark.parametrize("name", INTEGER_MAX)
@settings(deadline=None)
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


@settings(deadline=None)
@given(x=rows, name=st.sampled_from(FORMATS))
def test_odd_and_bounded(x: np.ndarray, name: str) -> None:
    t = torch.from_numpy(x.copy())
    y = quantize_dequantize(t, name)
    assert torch.equal(quantize_dequantize(-t, name), -y)
    if name in INTEGER_MAX:
        half_step = t.abs().amax(-1, keepdim=True) / INTEGER_MAX[name] / 2
        assert ((y - t).abs() <= half_step * (1 + 1e-4)).all()
    assert torch.isfinite(y).all() or name == "fp16"


def test_groups_are_rounded_alone() -> None:
    x = torch.randn(5, 150, generator=torch.Generator().manual_seed(0))
    found = quantize_dequantize(x, "int4", group=64)
    for start, stop in ((0, 64), (64, 128), (128, 150)):
        assert torch.equal(found[:, start:stop], quantize_dequantize(x[:, start:stop], "int4"))


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'w4a4'"):
        Level.parse("w4a44")
    with pytest.raises(UsageError, match="unknown format 'int3'"):
        quantize_dequantize(torch.ones(2), "int3")


@pytest.mark.parametrize("name", LEVEL_NAMES)
def test_names_round_trip(name: str) -> None:
    assert str(Level.parse(name)) == name


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(128, 96)
        self.second = nn.Linear(128, 96)
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.norm = nn.LayerNorm(96)

    def forward(self, x: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = self.norm(self.first(x) + self.second(x)).sum()
        return total + self.conv(image).sum()


def test_bank_shares_what_levels_do_not_change() -> None:
    torch.manual_seed(0)
    toy = Toy().eval()
    bank = LevelBank(toy, ("fp32", "w8a8", "w4a4"), ("first", "conv"))
    assert bank["fp32"] is toy
    own = {name: p.data_ptr() for name, p in toy.named_parameters()}
    for level in ("w8a8", "w4a4"):
        pointers = {p.data_ptr() for p in bank[level].parameters()}
        assert own["second.weight"] in pointers
        assert own["norm.weight"] in pointers
        assert own["first.bias"] in pointers
        assert own["conv.bias"] in pointers
        assert own["first.weight"] not in pointers
        assert own["conv.weight"] not in pointers
    assert isinstance(toy.first, nn.Linear), "the reference itself is untouched"


@torch.no_grad()
def test_simulated_layers_compute_what_they_say() -> None:
    torch.manual_seed(0)
    toy = Toy().eval()
    x, image = torch.randn(2, 7, 128), torch.randn(2, 3, 8, 8)
    for name in ("w8a8", "w4a8", "w4a4", "bf16"):
        level = Level.parse(name)
        assert level.weight is not None
        assert level.activation is not None
        bank = LevelBank(toy, ("fp32", name), ("first", "conv"))
        weight = quantize_dequantize(toy.first.weight, level.weight, group=level.weight_group)
        rounded = quantize_dequantize(x, level.activation)
        expected = rounded @ weight.T + toy.first.bias
        found = bank[name].get_submodule("first")(x)
        assert torch.allclose(found, expected, atol=1e-5)
        kernel = quantize_dequantize(
            toy.conv.weight.flatten(1), level.weight, group=level.weight_group
        )
        flat = quantize_dequantize(image.flatten(1), level.activation).view_as(image)
        expected = nn.functional.conv2d(
            flat, kernel.view_as(toy.conv.weight), toy.conv.bias, padding=1
        )
        found = bank[name].get_submodule("conv")(image)
        assert torch.allclose(found, expected, atol=1e-5)


@torch.no_grad()
def test_shared_rounding_notices_changed_inputs() -> None:
    """Query, key and value share one rounding; an input changed in place is rounded anew."""
    torch.manual_seed(0)
    bank = LevelBank(Toy().eval(), ("fp32", "w4a4"), ("first", "second"))
    layer = bank["w4a4"].get_submodule("first")
    x = torch.randn(4, 128)
    before = layer(x)
    x.mul_(-1)
    bias = layer.get_parameter("bias")
    assert torch.allclose(layer(x) - bias, bias - before, atol=1e-5)


def test_bank_refuses_what_it_can_not_do() -> None:
    with pytest.raises(UsageError, match="named twice"):
        LevelBank(Toy(), ("fp32", "w8a8", "w8a8"), ("first",))
    with pytest.raises(UsageError, match="norm is a LayerNorm"):
        LevelBank(Toy(), ("fp32", "w8a8"), ("norm",))
    with pytest.raises(UsageError, match="unknown level 'w8a8'"):
        LevelBank(Toy(), ("fp32",), ())["w8a8"]
