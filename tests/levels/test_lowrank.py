"""Low-rank branches against numpy, and what they are for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tmpdiff_bench.levels import Level, LevelBank, quantize_dequantize
from tmpdiff_bench.levels.simulated import largest_inputs, smoothing


class Branches(nn.Module):
    """Two layers with one input, as query and key, and one with theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(96, 64), nn.Linear(96, 64)
        self.out = nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.out(torch.tanh(self.query(x) * self.key(x)))
        return output


NAMES = ("query", "key", "out")


@pytest.fixture
def network() -> Branches:
    torch.manual_seed(0)
    return Branches().eval()


@pytest.fixture
def x() -> Tensor:
    """Inputs with outliers in a few channels, as transformers have."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 10, 96, generator=generator)
    x[..., :4] *= 30
    return x


@torch.no_grad()
def test_the_layer_computes_what_the_paper_says(network: Branches, x: Tensor) -> None:
    """Scaled weight = leading singular vectors + rounded rest; by numpy in double precision."""
    bank = LevelBank(network, ("fp32", "w4a4+lr8"), NAMES, lambda: network(x))
    weights = [network.query.weight.numpy(), network.key.weight.numpy()]
    largest = np.abs(x.numpy()).max((0, 1))
    factors = np.sqrt(largest / np.maximum(*(np.abs(w).max(0) for w in weights)))
    smooth = (weights[0] * factors).astype(np.float64)
    left, values, right = np.linalg.svd(smooth, full_matrices=False)
    low_rank = (left[:, :8] * values[:8]) @ right[:8]
    rest = torch.from_numpy((smooth - low_rank).astype(np.float32))
    rest = quantize_dequantize(rest, "int4", group=64)
    inputs = x / torch.from_numpy(factors)
    expected = quantize_dequantize(inputs, "int4") @ rest.T + network.query.bias
    expected += inputs @ torch.from_numpy(low_rank.astype(np.float32)).T
    found = bank.layers("w4a4+lr8")["query"](x)
    # a code that sits on a tie may fall to the other side
    assert ((found - expected).abs() > 1e-4 * expected.abs().max()).float().mean() < 0.01


@torch.no_grad()
def test_the_branch_lowers_the_error_and_a_full_one_removes_that_of_weights(
    network: Branches, x: Tensor
) -> None:
    ranks = (1, 8, 32)
    levels = ("fp32", "w4a4", *(f"w4a4+lr{rank}" for rank in ranks), "w8a16+lr96")
    bank = LevelBank(network, levels, NAMES, lambda: network(x))
    reference = network.query(x)
    found = [bank.layers(level)["query"](x) - reference for level in levels[1:]]
    errors = [float(error.norm() / reference.norm()) for error in found]
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[-1] < 1e-5, "nothing is left to round"


@torch.no_grad()
def test_smoothing_makes_both_ranges_equal(network: Branches, x: Tensor) -> None:
    inputs = largest_inputs(network, NAMES, lambda: (network(x[:4]), network(x[4:])))
    assert torch.equal(inputs["query"], x.abs().amax((0, 1)))
    assert torch.equal(inputs["query"], inputs["key"])
    weight = network.query.weight
    factors = smoothing(inputs["query"], weight)
    ranges = (inputs["query"] / factors, (weight * factors).abs().amax(0))
    assert torch.allclose(*ranges, rtol=1e-5)
    assert smoothing(torch.tensor([0.0, 1.0]), torch.tensor([[1.0, 0.0]])).tolist() == [1, 1]


def test_layers_with_one_input_share_its_rounding(network: Branches, x: Tensor) -> None:
    bank = LevelBank(network, ("fp32", "w4a4+lr4"), NAMES, lambda: network(x))
    inputs = [bank.layers("w4a4+lr4")[name]._inputs for name in NAMES]
    assert inputs[0] is inputs[1]
    assert inputs[0] is not inputs[2]
    assert not any(layer._forward_pre_hooks for layer in network.modules()), "hooks are gone"
    assert Level.parse("w4a4+lr4").rank == 4
