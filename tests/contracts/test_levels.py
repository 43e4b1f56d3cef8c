"""What every level keeps to, whatever its formats: one suite over all names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor, nn

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.levels import LEVEL_NAMES, Device, Level, LevelBank, reason_against
from tmpdiff_bench.pipelines import Sd3Stepwise

HERE = Device.of(torch.device("cpu"))
NATIVE = [f"native:{name}" for name in LEVEL_NAMES if name != "fp32"]
RUNNING = [name for name in NATIVE if reason_against(Level.parse(name), HERE) is None]
REFUSED = [name for name in NATIVE if name not in RUNNING]
LOW_RANK = ["w4a4+lr16", "w4a8+lr4", "mxfp4+lr16", "nvfp4+lr16", "w8a16+lr1"]
LEVELS = [*LEVEL_NAMES, *LOW_RANK, *RUNNING]
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
    """The embedded architecture with random weights, one forward of four samples."""

    def __init__(self, pipeline: StableDiffusion3Pipeline) -> None:
        self.stepwise = Sd3Stepwise(pipeline, steps=3, guidance=1.0)
        self.denoiser = self.stepwise.denoiser
        generator = torch.Generator().manual_seed(0)
        self.latents = torch.randn(4, *self.stepwise.latent_shape, generator=generator)
        self.conditioning = self.stepwise.encode(["a red circle", "two cats", "x", "a blue cube"])
        self.bank = LevelBank(
            self.denoiser, LEVELS, self.stepwise.quantized, lambda: self.run(self.denoiser)
        )

    @torch.no_grad()
    def run(self, module: nn.Module, rows: slice = slice(None)) -> Tensor:
        latents = self.latents[rows]
        output: Tensor = module(
            hidden_states=latents,
            timestep=torch.full((len(latents),), 600.0),
            return_dict=False,
            **self.conditioning[rows].for_network(),
        )[0]
        return output

    def error(self, level: str) -> float:
        reference = self.run(self.denoiser)
        return float((self.run(self.bank[level]) - reference).norm() / reference.norm())


@pytest.fixture(scope="module")
def setting(untrained_sd3: StableDiffusion3Pipeline) -> Setting:
    return Setting(untrained_sd3)


@pytest.mark.parametrize("name", [*LEVELS, *REFUSED])
def test_names_round_trip(name: str) -> None:
    level = Level.parse(name)
    assert str(level) == name
    assert Level.parse(str(level)) == level
    assert replace(level, name="other") != level


@pytest.mark.parametrize("name", LEVELS)
def test_outputs_are_finite_and_of_the_reference_dtype(setting: Setting, name: str) -> None:
    output = setting.run(setting.bank[name])
    assert output.dtype == setting.latents.dtype
    assert torch.isfinite(output).all()
    assert name == "fp32" or 0 < setting.error(name) < 1


@pytest.mark.parametrize("name", LEVELS)
def test_a_level_is_deterministic(setting: Setting, name: str) -> None:
    """Also made a second time: nothing but the inputs decides."""
    first = setting.run(setting.bank[name])
    assert torch.equal(setting.run(setting.bank[name]), first)
    again = LevelBank(
        setting.denoiser,
        (name,),
        setting.stepwise.quantized,
        lambda: setting.run(setting.denoiser),
    )
    assert torch.equal(setting.run(again[name]), first)


@pytest.mark.parametrize("name", LEVELS)
def test_samples_of_a_batch_do_not_influence_one_another(setting: Setting, name: str) -> None:
    """Exchanging the other samples for others, a thousand times larger, changes no bit of one."""
    before = setting.run(setting.bank[name])[:1]
    kept = setting.latents.clone()
    try:
        setting.latents[1:] = 1000 * kept[1:].flip(0)
        assert torch.equal(setting.run(setting.bank[name])[:1], before)
    finally:
        setting.latents.copy_(kept)


@pytest.mark.parametrize("name", [name for name in LEVELS if name != "fp32"])
def test_what_no_level_changes_exists_once(setting: Setting, name: str) -> None:
    weights = {f"{layer}.weight" for layer in setting.stepwise.quantized}
    mine = {p.data_ptr() for p in setting.bank[name].parameters() if not p.is_mkldnn}
    for key, parameter in setting.denoiser.named_parameters():
        biased = key.rpartition(".")[0] + ".weight" in weights and name == "native:bf16"
        if key in weights:
            assert parameter.data_ptr() not in mine, key
        elif not biased:  # a cast layer casts its bias as well
            assert parameter.data_ptr() in mine, key


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
            make(setting.denoiser, ("fp32", name), setting.stepwise.quantized)
