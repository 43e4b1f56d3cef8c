"""Names of levels; what simulated layers compute; what a bank refuses."""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch
from torch import nn

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.levels import LEVEL_NAMES, Level, LevelBank, quantize_dequantize


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("w4a44", "w4a4"),
        ("nvfp5", "nvfp4"),
        ("native:w8a9", "native:w8a8"),
        ("w4a4+lr0", "w4a4+lr32"),
        ("w4a4+lr032", "w4a4+lr32"),
        ("native:", "native:fp8"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UsageError, match=f"unknown level .* did you mean '{re.escape(nearest)}'"):
        Level.parse(name)


def test_names_that_mean_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match="fp32 is the reference itself; name it fp32"):
        Level.parse("native:fp32")
    with pytest.raises(UsageError, match="bf16 loses nothing"):
        Level.parse("bf16+lr4")


def test_backends_are_told_apart_by_the_level() -> None:
    assert Level.parse("w8a8").backend == "simulated"
    assert Level.parse("native:w8a8").backend == "native"
    assert Level.parse("fp32").backend == "native", "the reference emulates nothing"
    assert Level.parse("native:w4a4+lr8").base == "w4a4"


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


@torch.no_grad()
def test_simulated_layers_compute_what_they_say() -> None:
    torch.manual_seed(0)
    toy = Toy().eval()
    x, image = torch.randn(2, 7, 128), torch.randn(2, 3, 8, 8)
    for name in (name for name in LEVEL_NAMES if name != "fp32"):
        level = Level.parse(name)
        assert level.weight is not None
        assert level.activation is not None
        bank = LevelBank(toy, ("fp32", name), ("first", "conv"))
        round_weight = partial(
            quantize_dequantize,
            format=level.weight,
            group=level.weight_group,
            whole=level.weight == "nvfp4",
        )
        weight = round_weight(toy.first.weight)
        rounded = quantize_dequantize(x, level.activation)
        expected = rounded @ weight.T + toy.first.bias
        found = bank.layers(name)["first"](x)
        assert torch.allclose(found, expected, atol=1e-5)
        kernel = round_weight(toy.conv.weight.flatten(1))
        flat = quantize_dequantize(image.flatten(1), level.activation).view_as(image)
        expected = nn.functional.conv2d(
            flat, kernel.view_as(toy.conv.weight), toy.conv.bias, padding=1
        )
        found = bank.layers(name)["conv"](image)
        assert torch.allclose(found, expected, atol=1e-5)


@torch.no_grad()
def test_shared_rounding_notices_changed_inputs() -> None:
    """Query, key and value share one rounding; an input changed in place is rounded anew."""
    torch.manual_seed(0)
    bank = LevelBank(Toy().eval(), ("fp32", "w4a4"), ("first", "second"))
    layer = bank.layers("w4a4")["first"]
    x = torch.randn(4, 128)
    before = layer(x)
    x.mul_(-1)
    assert torch.allclose(layer(x) - layer.bias, layer.bias - before, atol=1e-5)


def test_levels_run_in_inference_mode() -> None:
    """Whose tensors count no changes, so that nothing may be shared by identity."""
    torch.manual_seed(0)
    bank = LevelBank(Toy().eval(), ("fp32", "w4a4"), ("first", "second"))
    layer, x = bank.layers("w4a4")["first"], torch.randn(4, 128)
    with torch.no_grad():
        expected = (layer(x), layer(-x))
    with torch.inference_mode():
        y = x.clone()
        assert torch.equal(layer(y), expected[0])
        y.mul_(-1)
        assert torch.equal(layer(y), expected[1])


def test_bank_refuses_what_it_can_not_do() -> None:
    with pytest.raises(
        UsageError, match=r"w4a4\+lr4 scales its inputs .* take a level without \+lr"
    ):
        LevelBank(Toy(), ("fp32", "w4a4+lr4"), ("first",))
    with pytest.raises(UsageError, match="calibration run does not use layer first"):
        LevelBank(Toy(), ("fp32", "w4a4+lr4"), ("first",), lambda: None)
    with pytest.raises(UsageError, match="unknown residency 'disk'"):
        LevelBank(Toy(), ("fp32", "w8a8"), ("first",), None, "disk")
    with pytest.raises(UsageError, match="named twice"):
        LevelBank(Toy(), ("fp32", "w8a8", "w8a8"), ("first",))
    with pytest.raises(UsageError, match="norm is a LayerNorm"):
        LevelBank(Toy(), ("fp32", "w8a8"), ("norm",))
    with pytest.raises(UsageError, match="unknown level 'w8a8'"):
        LevelBank(Toy(), ("fp32",), ()).at("w8a8")
