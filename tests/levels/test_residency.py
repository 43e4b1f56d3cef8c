"""Memory of a bank: what it says, what it takes, and where idle weights are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.levels import RESIDENCIES, Device, LevelBank

NAMES = ("query", "key", "conv")
RUNNING = (
    level
    for level, feature in (("native:bf16", "bf16"), ("native:w8a8", "int8"))
    if feature in Device.of(torch.device("cpu")).features
)
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


def own(module: nn.Module, reference: nn.Module) -> int:
    """Bytes of the tensors that a level does not share with the reference."""
    shared = {id(t) for t in (*reference.parameters(), *reference.buffers())}
    tensors = {id(t): t for t in (*module.parameters(), *module.buffers())}
    return sum(t.numel() * t.element_size() for key, t in tensors.items() if key not in shared)


@torch.no_grad()
def test_residencies_agree_in_every_bit(network: Network, x: Tensor) -> None:
    banks = {
        mode: LevelBank(network, LEVELS, NAMES, lambda: network(x), mode) for mode in RESIDENCIES
    }
    for level in (*LEVELS, *reversed(LEVELS)):
        outputs = {mode: bank[level](x) for mode, bank in banks.items()}
        for mode in ("offload", "derive"):
            assert torch.equal(outputs[mode], outputs["resident"]), (mode, level)


@pytest.mark.parametrize("mode", ["offload", "derive"])
@torch.no_grad()
def test_only_the_level_in_use_takes_memory(network: Network, x: Tensor, mode: str) -> None:
    bank = LevelBank(network, LEVELS, NAMES, lambda: network(x), mode)
    low = [level for level in LEVELS if level != "fp32"]
    for level in (*low, "fp32"):
        awake = bank[level]
        taken = {other: own(bank._modules[other], network) for other in low}
        expected = low[-1] if level == "fp32" else level  # the reference leaves the last one
        assert {other for other, size in taken.items() if size} == {expected}
        awake(x)


@pytest.mark.parametrize("mode", ["offload", "derive"])
def test_a_level_put_aside_says_so(network: Network, x: Tensor, mode: str) -> None:
    bank = LevelBank(network, LEVELS, NAMES, lambda: network(x), mode)
    held = bank["w8a8"]
    bank["bf16"]
    with pytest.raises(UsageError, match="weights of level w8a8 are put aside: ask the bank"):
        held(x)


@pytest.mark.parametrize("level", LEVELS[1:])
def test_memory_is_told_before_it_is_taken(network: Network, x: Tensor, level: str) -> None:
    told = LevelBank.memory(network, ("fp32", level), NAMES)
    taken = own(LevelBank(network, ("fp32", level), NAMES, lambda: network(x))[level], network)
    # query and key share smoothing factors, which are counted for each
    assert told.own[level] - taken == (128 * 4 if "lr" in level else 0)
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
    import gc

    gc.collect()
    assert not list(tmp_path.iterdir())
