"""A bank's exchanges: what stands where, also when something comes between."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.levels import RESIDENCIES, LevelBank
from tmpdiff_bench.levels.leaf import Leaf

NAMES = ("first", "blocks.0.to_q", "conv")
LEVELS = ("fp32", "w8a8", "w4a4")


def nothing() -> None:
    """Done in the midst of a call."""


class Block(nn.Module):
    def __init__(self, shared: nn.Linear) -> None:
        super().__init__()
        self.to_q, self.shared = nn.Linear(128, 128), shared

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = x + self.shared(torch.tanh(self.to_q(x)))
        return output


class Network(nn.Module):
    """Its layer `first` has three parents, two of them of a list."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv = nn.Linear(128, 128), nn.Conv1d(3, 3, 3, padding=1, bias=False)
        self.blocks = nn.ModuleList(Block(self.first) for _ in range(2))
        self.norm = nn.LayerNorm(128)
        self.during: Callable[[], object] = nothing

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.first(x))
        self.during()
        for block in self.blocks:
            x = block(x)
        output: Tensor = self.norm(x)
        return output


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 128, generator=torch.Generator().manual_seed(0))


def stands(network: nn.Module) -> list[tuple[str, int]]:
    modules = network.named_modules(remove_duplicate=False)
    return [(name, id(module)) for name, module in modules]


def run(bank: LevelBank, level: str, x: Tensor) -> Tensor:
    with bank.at(level):
        output: Tensor = bank.denoiser(x)
    return output


def alone(network: Network, level: str, x: Tensor) -> Tensor:
    """A level of a copy, in a bank of its own."""
    return run(LevelBank(copy.deepcopy(network), (level,), NAMES), level, x)


def test_a_layer_is_exchanged_in_all_its_parents(network: Network, x: Tensor) -> None:
    bank = LevelBank(network, LEVELS, NAMES)
    with bank.at("w4a4"):
        leaf = network.first
        assert isinstance(leaf, Leaf)
        assert all(block.shared is leaf for block in network.blocks)
    apart = copy.deepcopy(network)  # the same, with a layer for each parent
    for block in apart.blocks:
        block.shared = copy.deepcopy(apart.first)
    names = (*NAMES, "blocks.0.shared", "blocks.1.shared")
    assert torch.equal(run(bank, "w4a4", x), run(LevelBank(apart, LEVELS, names), "w4a4", x))


@pytest.mark.parametrize("mode", RESIDENCIES)
def test_levels_take_turns_in_any_order(network: Network, x: Tensor, mode: str) -> None:
    before = stands(network)
    expected = {level: alone(network, level, x) for level in LEVELS}
    bank = LevelBank(network, LEVELS, NAMES, None, mode)
    for level in ("w4a4", "fp32", "w8a8", "w8a8", "w4a4", "w8a8", "fp32"):
        assert torch.equal(run(bank, level, x), expected[level])
        assert stands(network) == before


@pytest.mark.parametrize("mode", RESIDENCIES)
@pytest.mark.parametrize("inner", LEVELS)
@pytest.mark.parametrize("outer", LEVELS)
def test_a_level_within_a_level(
    network: Network, x: Tensor, outer: str, inner: str, mode: str
) -> None:
    before = stands(network)
    expected = {level: alone(network, level, x) for level in LEVELS}
    bank = LevelBank(network, LEVELS, NAMES, None, mode)
    with bank.at(outer):
        assert torch.equal(run(bank, inner, x), expected[inner])
        assert torch.equal(network(x), expected[outer])
    assert stands(network) == before
    assert torch.equal(run(bank, inner, x), expected[inner])


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_denoiser_as_it_was(
    network: Network, x: Tensor, error: type[BaseException]
) -> None:
    before, bank = stands(network), LevelBank(network, LEVELS, NAMES)

    def stop() -> None:
        raise error

    network.during = stop
    with pytest.raises(error), bank.at("w8a8"), bank.at("w4a4"):
        network(x)
    assert stands(network) == before
    network.during = nothing
    assert torch.equal(run(bank, "w4a4", x), alone(network, "w4a4", x))


class Interrupted(dict[str, Any]):
    """Children of a module, at one exchange of which the user presses Ctrl-C."""

    after = 10**9

    def __setitem__(self, key: str, value: object) -> None:
        type(self).after -= 1
        if type(self).after == 0:
            raise KeyboardInterrupt
        super().__setitem__(key, value)


@pytest.mark.parametrize("exchange", range(1, 9))
def test_an_interrupt_in_the_midst_of_an_exchange(network: Network, exchange: int) -> None:
    """One of the four watched here when the level is entered, or of the four when it is left."""
    vars(network)["_modules"] = Interrupted(network._modules)
    vars(network.blocks[0])["_modules"] = Interrupted(network.blocks[0]._modules)
    before, bank = stands(network), LevelBank(network, LEVELS, NAMES)
    Interrupted.after = exchange
    with pytest.raises(KeyboardInterrupt), bank.at("w4a4"):
        pass
    assert stands(network) == before


def test_a_layer_replaced_before_is_not_taken_for_its_own(network: Network) -> None:
    bank = LevelBank(network, LEVELS, NAMES)
    theirs = network.blocks[0].to_q = nn.Linear(128, 128)
    before = stands(network)
    with bank.at("fp32"):
        assert stands(network) == before
    with pytest.raises(UsageError, match=r"layer blocks\.0\.to_q has been replaced since level w8"):
        bank.at("w8a8").__enter__()
    assert stands(network) == before
    assert network.blocks[0].to_q is theirs


def test_a_layer_replaced_meanwhile_stays_and_is_told(network: Network, x: Tensor) -> None:
    bank, mine = LevelBank(network, LEVELS, NAMES), network.first
    theirs = nn.Linear(128, 128)
    network.during = lambda: setattr(network.blocks[0], "to_q", theirs)
    with pytest.raises(UsageError, match=r"blocks\.0\.to_q was replaced while level w4a4 stood"):
        run(bank, "w4a4", x)
    assert network.blocks[0].to_q is theirs
    assert network.first is mine, "the others are back"

    def fail() -> None:
        network.blocks[0].to_q = nn.Linear(128, 128)
        raise ValueError("their own error")

    bank, network.during = LevelBank(network, LEVELS, NAMES), fail
    with pytest.raises(ValueError, match="their own error"):
        run(bank, "w4a4", x)


def test_copies_and_pickles_are_those_of_the_denoiser(network: Network, x: Tensor) -> None:
    bank = LevelBank(network, LEVELS, NAMES)
    run(bank, "w4a4", x)
    copies: list[Network] = [copy.deepcopy(network), pickle.loads(pickle.dumps(network))]
    for copied in copies:
        assert not any(isinstance(module, Leaf) for module in copied.modules())
        assert {*vars(copied)} == {*vars(network)}
        assert copied.state_dict().keys() == network.state_dict().keys()
        with bank.at("w4a4"):
            inside = copied(x)
        assert torch.equal(inside, network(x)), "of a copy, no level stands"


@pytest.mark.parametrize("mode", RESIDENCIES)
def test_a_bank_made_in_inference_mode_is_of_use_outside(
    network: Network, x: Tensor, mode: str
) -> None:
    expected = {level: alone(network, level, x) for level in LEVELS}
    with torch.inference_mode():
        bank = LevelBank(network, (*LEVELS, "w4a4+lr4"), NAMES, lambda: network(x), mode)
        assert torch.equal(run(bank, "w8a8", x), expected["w8a8"])
        assert torch.equal(run(bank, "w4a4", x.clone()), expected["w4a4"])
    assert torch.equal(run(bank, "w4a4", x), expected["w4a4"])
    rows = x.clone().requires_grad_()
    for level in ("w8a8", "w4a4+lr4"):
        with torch.enable_grad(), bank.at(level):
            assert network(rows).requires_grad


def test_weights_made_in_inference_mode(x: Tensor) -> None:
    with torch.inference_mode():
        torch.manual_seed(0)
        theirs = Network().eval()
    torch.manual_seed(0)
    mine = Network().eval()
    with torch.inference_mode():
        bank = LevelBank(theirs, LEVELS, NAMES)
        assert torch.equal(run(bank, "w4a4", x), alone(mine, "w4a4", x))
