"""Memory of a bank: what it says, what it takes, and where idle weights are."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor, nn

from tests.processor import RUNNING
from tmpdiff_bench.levels import RESIDENCIES, LevelBank
from tmpdiff_bench.levels.leaf import Leaf

NAMES = ("query", "key", "conv")
FACTORS = 2 * 128 * 4  # bytes of smoothing factors, counted for query and for key, which share them
LEVELS = ("fp32", "bf16", "w8a8", "w4a4+lr8", "nvfp4", *RUNNING)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(128, 96), nn.Linear(128, 96, bias=False)
        self.conv, self.norm = nn.Conv2d(3, 5, 3), nn.LayerNorm(96)

    def forward(self, x: Tensor) -> Tensor:
        image = x[:, :3, :64].unflatten(-1, (8, 8))
        first: Tensor = self.norm(self.query(x) + self.key(x)).flatten(1)
        return torch.cat([first, self.conv(image).flatten(1)], dim=1)


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 7, 128, generator=torch.Generator().manual_seed(0))


def own(bank: LevelBank, level: str) -> int:
    """Bytes of the tensors that a level has for itself."""
    tensors = {id(t): t for leaf in bank.layers(level).values() for t in leaf.own.values()}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def alive(network: nn.Module) -> int:
    """Bytes of all leaves of a network that there are, whoever holds them."""
    gc.collect()
    leaves = [found for found in gc.get_objects() if issubclass(type(found), Leaf)]
    mine = [leaf for leaf in leaves if any(leaf.layer is layer for layer in network.modules())]
    return sum(t.numel() * t.element_size() for leaf in mine for t in leaf.own.values())


@torch.no_grad()
def test_residencies_agree_in_every_bit(network: Network, x: Tensor) -> None:
    banks = {
        mode: LevelBank(network, LEVELS, NAMES, lambda: network(x), mode) for mode in RESIDENCIES
    }
    for level in (*LEVELS, *reversed(LEVELS)):
        outputs = {}
        for mode, bank in banks.items():
            with bank.at(level):
                outputs[mode] = network(x)
        for mode in ("offload", "derive"):
            assert torch.equal(outputs[mode], outputs["resident"]), (mode, level)


@pytest.mark.parametrize("mode", RESIDENCIES)
@torch.no_grad()
def test_only_the_level_in_use_takes_memory(network: Network, x: Tensor, mode: str) -> None:
    bank = LevelBank(network, LEVELS, NAMES, lambda: network(x), mode)
    told = LevelBank.memory(network, LEVELS, NAMES, mode)
    low = [level for level in LEVELS if level != "fp32"]
    for level in (*low, "fp32", *reversed(low)):
        with bank.at(level):
            network(x)
        taken = alive(network)
        each = {other: told.own[other] - FACTORS * ("lr" in other) for other in low}
        latest = level if level != "fp32" else low[-1]  # the reference leaves the last one
        assert taken == (sum(each.values()) if mode == "resident" else each[latest]), level


@pytest.mark.parametrize("level", LEVELS[1:])
def test_memory_is_told_before_it_is_taken(network: Network, x: Tensor, level: str) -> None:
    told = LevelBank.memory(network, ("fp32", level), NAMES)
    taken = own(LevelBank(network, ("fp32", level), NAMES, lambda: network(x)), level)
    assert told.own[level] - taken == FACTORS * ("lr" in level)
    assert told.reference == sum(p.nbytes for p in network.parameters())
    assert told.total == told.reference + told.own[level]
    resident = LevelBank.memory(network, LEVELS, NAMES)
    derived = LevelBank.memory(network, LEVELS, NAMES, "derive")
    assert resident.total == resident.reference + sum(resident.own.values())
    assert derived.total == derived.reference + max(derived.own.values())
    assert f"besides {LEVELS[1]} 0.1 MB" in str(resident)


def test_files_of_idle_weights_are_removed(network: Network, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    bank = LevelBank(network, ("fp32", "w8a8"), NAMES, None, "offload")
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    del bank
    gc.collect()
    assert not list(tmp_path.iterdir())
