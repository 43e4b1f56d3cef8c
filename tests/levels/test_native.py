"""Native levels: what runs where, and that it computes what its simulated twin does."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.processor import needs
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.levels import Device, Level, LevelBank, reason_against
from tmpdiff_bench.levels.devices import is_reference
from tmpdiff_bench.levels.native import pack, torchao_config, unpack

AMX = Device("cpu", "this CPU", None, frozenset({"bf16", "int8"}))
OLD = Device("cpu", "this CPU")
A100, ADA = Device("cuda", "A100", (8, 0)), Device("cuda", "RTX 4090", (8, 9))
H200, B200 = Device("cuda", "H200", (9, 0)), Device("cuda", "B200", (10, 0))
RUNS = {
    "bf16": (AMX, A100, ADA, H200, B200),
    "fp16": (A100, ADA, H200, B200),
    "w8a8": (AMX, A100, ADA, H200, B200),
    "w8a16": (A100, ADA, H200, B200),
    "w4a16": (A100, ADA, H200, B200),
    "fp8": (ADA, H200, B200),
    "mxfp8": (B200,),
    "nvfp4": (B200,),
    "w4a8": (),
    "w4a4": (),
    "mxfp6": (),
    "mxfp4": (),
}


@pytest.mark.parametrize("base", RUNS)
@pytest.mark.parametrize(
    "device", [AMX, OLD, A100, ADA, H200, B200], ids=["AMX", "OLD", "A100", "ADA", "H200", "B200"]
)
def test_what_runs_where(base: str, device: Device) -> None:
    reason = reason_against(Level.parse(f"native:{base}"), device)
    assert (reason is None) == (device in RUNS[base])
    assert reason_against(Level.parse(base), device) is None, "a simulated level runs anywhere"


@pytest.mark.parametrize(
    ("level", "device", "reason"),
    [
        ("native:nvfp4", H200, "Hopper has no 4-bit tensor cores; nvfp4 needs compute capability"),
        ("native:w4a4", H200, "Hopper has no 4-bit tensor cores, and neither torch nor torchao"),
        ("native:mxfp8", H200, "Hopper has no tensor cores for mxfp8; mxfp8 needs .* H200 has 9.0"),
        ("native:fp8", A100, "Ampere or Ada has no tensor cores for fp8; .* 8.9, A100 has 8.0"),
        ("native:w8a8", OLD, "this CPU has no int8 products .AVX-512 VNNI or AMX"),
        ("native:fp8", AMX, "no kernel for fp8 on CPUs"),
        ("native:w4a4+lr8", B200, "no kernel here joins a low-rank branch"),
        ("native:bf16", Device("mps", "mps"), "on CPUs and on CUDA, not on mps"),
    ],
)
def test_reasons_name_what_lacks(level: str, device: Device, reason: str) -> None:
    found = reason_against(Level.parse(level), device)
    assert found is not None
    assert re.search(reason, found)


def test_the_bank_refuses_before_it_takes_anything() -> None:
    with pytest.raises(UsageError, match="level native:nvfp4 can't run on this CPU: no kernel"):
        LevelBank(nn.Sequential(nn.Linear(4, 4)), ("fp32", "native:nvfp4"), ("0",))


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(96, 160), nn.GELU(), nn.Linear(160, 40, bias=False)).eval()


@needs("native:w8a8")
@torch.no_grad()
def test_int8_is_the_simulated_level_but_for_float_rounding(network: nn.Module) -> None:
    bank = LevelBank(network, ("fp32", "w8a8", "native:w8a8"), ("0", "2"))
    for rows in (1, 7, 300):
        x = torch.randn(2, rows, 96)
        x[0, 0] = 0
        exact = bank.layers("w8a8")["0"](x)
        found = bank.layers("native:w8a8")["0"](x)
        assert found.dtype == x.dtype
        assert (found - exact).abs().max() < 1e-6 * exact.abs().max()


@needs("native:w8a8")
@torch.no_grad()
def test_int8_products_are_exact_integers() -> None:
    """Codes at both ends, whose sums leave 16 bits; the operator may not saturate in between."""
    layer = nn.Linear(512, 64, bias=False)
    signs = torch.where(torch.arange(512) % 3 > 0, 127.0, -127.0)
    layer.weight.copy_(signs.expand(64, 512))
    bank = LevelBank(nn.Sequential(layer), ("fp32", "native:w8a8"), ("0",))
    with bank.at("native:w8a8"):
        found = bank.denoiser(signs.expand(5, 512))
    assert found.unique().tolist() == [512 * 127**2]


@needs("native:w8a8")
def test_int8_holds_one_byte_a_weight(network: nn.Module) -> None:
    """No float copy is kept, and none is made in the forward: the operator gets int8 alone."""
    bank = LevelBank(network, ("fp32", "native:w8a8"), ("0", "2"))
    layer = bank.layers("native:w8a8")["0"]
    own = {name: tensor.dtype for name, tensor in layer.own.items()}
    assert own == {"packed": torch.int8, "scale": torch.float32, "zero": torch.int64}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        layer(torch.randn(64, 96))
    names = {event.key for event in profile.key_averages()}
    assert "onednn::qlinear_pointwise" in names
    assert not {"aten::addmm", "aten::mm", "aten::linear"} & names


@needs("native:w8a8")
def test_packing_is_reversible() -> None:
    codes = torch.randint(-127, 128, (48, 33), dtype=torch.int8)
    assert torch.equal(unpack(pack(codes)), codes)


@needs("native:bf16")
@torch.no_grad()
def test_bf16_runs_in_bf16(network: nn.Module) -> None:
    bank = LevelBank(network, ("fp32", "native:bf16"), ("0", "2"))
    x = torch.randn(3, 96)
    first = network.get_submodule("0")
    assert isinstance(first, nn.Linear)
    assert first.bias is not None
    expected = nn.functional.linear(
        x.bfloat16(), first.weight.bfloat16(), first.bias.bfloat16()
    ).float()
    assert torch.equal(bank.layers("native:bf16")["0"](x), expected)


@pytest.mark.parametrize("own", ["fp32", "bf16", "fp16"])
def test_levels_of_the_own_dtype_are_the_denoiser_itself(network: nn.Module, own: str) -> None:
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    network.to(dtypes[own])
    levels = ("fp32", "bf16", "fp16", "native:bf16", "native:fp16", "w8a16", "w4a4", "native:w8a8")
    left = {level for level in levels if is_reference(Level.parse(level), network)}
    assert left == {"fp32", own} | ({f"native:{own}"} if own != "fp32" else set())
    bank = LevelBank(network, (own, "w4a4"), ("0", "2"))
    assert bank.layers(own) == {}
    assert set(LevelBank.memory(network, (own, "w4a4"), ("0", "2")).own) == {"w4a4"}


def settings() -> dict[str, Any]:
    config = torch._inductor.config
    names = ["coordinate_descent_tuning", "coordinate_descent_check_all_directions"]
    names += ["force_fuse_int_mm_with_mul", "fx_graph_cache"]
    return {name: getattr(config, name) for name in names}


@torch.no_grad()
def test_inductor_settings_stay(network: nn.Module) -> None:
    """Torchao's own default changes them, for everything that is compiled in the process."""
    import torch._inductor.config
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    before = settings()
    model = nn.Sequential(nn.Linear(64, 64))
    for base in ("w8a8", "w8a16"):
        quantize_(model, torchao_config(Level.parse(f"native:{base}")), device="cpu")
        model = nn.Sequential(nn.Linear(64, 64))
    for base in ("fp8", "w4a16"):
        assert torchao_config(Level.parse(f"native:{base}")).set_inductor_config is False
    for base in ("mxfp8", "nvfp4"):
        assert not hasattr(torchao_config(Level.parse(f"native:{base}")), "set_inductor_config")
    assert settings() == before
    with torch._inductor.config.patch(before):  # restores what follows
        quantize_(model, Int8DynamicActivationInt8WeightConfig())
        assert settings() != before, "the test would notice"
    assert settings() == before


@torch.no_grad()
def test_torchao_int8_agrees_with_ours() -> None:
    """The kernel of CUDA, run on the CPU: another scale (max / 127.5), the same level."""
    from torchao.quantization import quantize_

    torch.manual_seed(0)
    layer, x = nn.Linear(128, 64), torch.randn(20, 128)
    theirs = nn.Sequential(nn.Linear(128, 64))
    theirs.load_state_dict({f"0.{k}": v for k, v in layer.state_dict().items()})
    quantize_(theirs, torchao_config(Level.parse("native:w8a8")))
    bank = LevelBank(nn.Sequential(layer), ("fp32", "w8a8"), ("0",))
    reference = layer(x)

    def error(y: Tensor) -> float:
        return float((y - reference).norm() / reference.norm())

    assert error(theirs(x)) == pytest.approx(error(bank.layers("w8a8")["0"](x)), rel=0.1)
