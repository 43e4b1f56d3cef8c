"""What every level keeps to, whatever its formats: one suite over all names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tiny import TINY
from tests.tiny.common import CLIP_WIDTH, T5_WIDTH
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.levels import LEVEL_NAMES, Device, Level, LevelBank, reason_against
from tmpdiff_bench.levels.devices import is_reference
from tmpdiff_bench.pipelines import quantized_layers

HERE = Device.of(torch.device("cpu"))
NATIVE = [f"native:{name}" for name in LEVEL_NAMES if name != "fp32"]
RUNNING = [name for name in NATIVE if reason_against(Level.parse(name), HERE) is None]
REFUSED = [name for name in NATIVE if name not in RUNNING]
LOW_RANK = ["w4a4+lr16", "w4a8+lr4", "mxfp4+lr16", "nvfp4+lr16", "w8a16+lr1"]
LEVELS = [*LEVEL_NAMES, *LOW_RANK, *RUNNING]
LOW = [name for name in LEVELS if name != "fp32"]
# from finer to coarser: what has fewer bits, or coarser scales, may not be more exact
CHAINS = [
    ("fp32", "fp16", "bf16", "w8a8", "w4a8", "w4a4"),
    ("fp32", "bf16", "w8a16", "w4a16", "w4a4"),
    ("fp32", "bf16", "fp8", "mxfp4"),
    ("fp32", "mxfp8", "nvfp4", "mxfp4"),
    ("fp32", "mxfp6", "nvfp4", "mxfp4"),  # e2m3 has the mantissa of mxfp8: neither is finer
    ("fp32", "w4a4+lr16", "w4a4"),
    ("fp32", "mxfp4+lr16", "mxfp4"),
]


class Setting:
    """A tiny SD3 transformer with random weights, one forward of four samples."""

    def __init__(self) -> None:
        self.denoiser: nn.Module = TINY["StableDiffusion3Pipeline"].build().transformer
        self.names = quantized_layers(self.denoiser)
        generator = torch.Generator().manual_seed(0)
        self.latents = torch.randn(4, 4, 8, 8, generator=generator)
        self.texts = torch.randn(4, 12, T5_WIDTH, generator=generator)
        self.pooled = torch.randn(4, 2 * CLIP_WIDTH, generator=generator)
        self.bank = self.make(LEVELS)

    def make(self, levels: list[str]) -> LevelBank:
        return LevelBank(self.denoiser, levels, self.names, self.forward)

    @torch.no_grad()
    def forward(self) -> Tensor:
        output: Tensor = self.denoiser(
            hidden_states=self.latents,
            encoder_hidden_states=self.texts,
            pooled_projections=self.pooled,
            timestep=torch.full((4,), 600.0),
            return_dict=False,
        )[0]
        return output

    def run(self, level: str) -> Tensor:
        with self.bank.at(level):
            return self.forward()

    def error(self, level: str) -> float:
        reference = self.run("fp32")
        return float((self.run(level) - reference).norm() / reference.norm())


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting()


@pytest.mark.parametrize("name", [*LEVELS, *REFUSED])
def test_names_round_trip(name: str) -> None:
    level = Level.parse(name)
    assert str(level) == name
    assert Level.parse(str(level)) == level
    assert replace(level, name="other") != level


@pytest.mark.parametrize("name", LEVELS)
def test_outputs_are_finite_and_of_the_reference_dtype(setting: Setting, name: str) -> None:
    output = setting.run(name)
    assert output.dtype == setting.latents.dtype
    assert torch.isfinite(output).all()
    assert name == "fp32" or 0 < setting.error(name) < 1


@pytest.mark.parametrize("name", LEVELS)
def test_a_level_is_deterministic(setting: Setting, name: str) -> None:
    """Also made a second time: nothing but the inputs decides."""
    first = setting.run(name)
    assert torch.equal(setting.run(name), first)
    with setting.make([name]).at(name):
        assert torch.equal(setting.forward(), first)


@pytest.mark.parametrize("name", LEVELS)
def test_samples_of_a_batch_do_not_influence_one_another(setting: Setting, name: str) -> None:
    """Exchanging the other samples for others, a thousand times larger, changes no bit of one."""
    before = setting.run(name)[:1]
    kept = setting.latents.clone()
    try:
        setting.latents[1:] = 1000 * kept[1:].flip(0)
        assert torch.equal(setting.run(name)[:1], before)
    finally:
        setting.latents.copy_(kept)


def contents(module: nn.Module) -> dict[str, Any]:
    """Everything in a module tree, by identity."""
    found: dict[str, Any] = {}
    for name, child in module.named_modules(remove_duplicate=False):
        for key, value in vars(child).items():
            held = {k: id(v) for k, v in value.items()} if isinstance(value, dict) else id(value)
            found[f"{name}: {key}"] = held
        found[name] = id(child)
    return found


@pytest.mark.parametrize("name", LOW)
def test_a_level_changes_its_layers_alone_and_leaves_no_trace(setting: Setting, name: str) -> None:
    denoiser = setting.denoiser
    before, state = contents(denoiser), denoiser.state_dict()
    modules, parameters = dict(denoiser.named_modules()), dict(denoiser.named_parameters())
    with setting.bank.at(name):
        inside = dict(denoiser.named_modules())
        changed = [key for key, module in modules.items() if inside[key] is not module]
        assert changed == list(setting.names)
        told = dict(denoiser.named_parameters())
        assert {k: id(v) for k, v in told.items()} == {k: id(v) for k, v in parameters.items()}
        setting.forward()
    assert contents(denoiser) == before
    assert all(torch.equal(state[k], v) for k, v in denoiser.state_dict().items())


@pytest.mark.parametrize("name", LOW)
def test_what_no_level_changes_exists_once(setting: Setting, name: str) -> None:
    """Weights of its own are all that a level has: biases too are the reference's."""
    shared = {p.data_ptr() for p in setting.denoiser.parameters()}
    leaves = setting.bank.layers(name)
    assert leaves.keys() == {*setting.names}
    for key, leaf in leaves.items():
        layer = setting.denoiser.get_submodule(key)
        assert leaf.bias is layer.bias
        assert leaf.in_features is layer.in_features
        assert not shared & {t.data_ptr() for t in leaf.own.values() if not t.is_mkldnn}


def test_the_reference_is_the_denoiser_itself(setting: Setting) -> None:
    assert [name for name in LEVELS if is_reference(Level.parse(name), setting.denoiser)] == [
        "fp32"
    ]
    before = contents(setting.denoiser)
    with setting.bank.at("fp32"):
        assert contents(setting.denoiser) == before
    assert setting.bank.layers("fp32") == {}


@pytest.mark.parametrize("name", LOW)
@pytest.mark.parametrize("mode", ["offload", "derive"])
def test_where_idle_weights_are_changes_no_bit(setting: Setting, name: str, mode: str) -> None:
    bank = LevelBank(setting.denoiser, ("fp32", name), setting.names, setting.forward, mode)
    expected = setting.run(name)
    for _ in range(2):
        with bank.at(name):
            assert torch.equal(setting.forward(), expected)


@pytest.mark.parametrize("name", LOW)
def test_bytes_are_what_is_told(setting: Setting, name: str) -> None:
    told = LevelBank.memory(setting.denoiser, ("fp32", name), setting.names).own[name]
    held = {id(t): t for leaf in setting.bank.layers(name).values() for t in leaf.own.values()}
    factors = 0  # counted for every layer, though some share them
    if Level.parse(name).rank:
        factors = sum(4 * layer.in_features for layer in setting.bank.layers(name).values())
    assert told == factors + sum(t.numel() * t.element_size() for t in held.values())


@pytest.mark.parametrize("chain", CHAINS, ids=" ".join)
def test_errors_grow_as_bits_shrink(setting: Setting, chain: tuple[str, ...]) -> None:
    errors = [setting.error(level) for level in chain]
    assert errors == sorted(errors), dict(zip(chain, errors, strict=True))


@pytest.mark.parametrize("name", RUNNING)
def test_a_native_level_is_as_exact_as_its_simulated_one(setting: Setting, name: str) -> None:
    simulated = setting.error(name.removeprefix("native:"))
    assert 0.5 * simulated < setting.error(name) < 2 * simulated


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_run_is_refused_with_a_reason(setting: Setting, name: str) -> None:
    makers: list[Callable[..., object]] = [LevelBank, LevelBank.memory]
    for make in makers:
        with pytest.raises(UsageError, match=f"level {name} can't run on this CPU: .{{20}}"):
            make(setting.denoiser, ("fp32", name), setting.names)
