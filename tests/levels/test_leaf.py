"""What stands in the place of a layer: called as it is, with all that others have hung on it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.modeling_utils import get_parameter_dtype
from torch import Tensor, nn

from tests.processor import RUNNING
from tests.tiny import TINY
from tests.tiny.common import CLIP_WIDTH, T5_WIDTH
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.levels import RESIDENCIES, Level, LevelBank, quantize_dequantize
from tmpdiff_bench.levels.devices import is_reference
from tmpdiff_bench.pipelines import quantized_layers

LEVELS = ("fp32", "w8a8", "w4a4", "nvfp4", "w4a4+lr4", *RUNNING)
LOW = LEVELS[1:]


class Network(nn.Module):
    """Its layers are called by position, or by their argument's name, as UNetMotionModel does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.conv = nn.Linear(64, 64), nn.Conv2d(4, 4, 3, padding=1)
        self.named = False

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        if self.named:
            output: Tensor = self.conv(input=self.linear(input=x))
            return output
        output = self.conv(self.linear(x))
        return output


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 4, 6, 64, generator=torch.Generator().manual_seed(0))


def make(network: Network, x: Tensor) -> LevelBank:
    return LevelBank(network, LEVELS, ("linear", "conv"), lambda: network(x))


@pytest.mark.parametrize("level", LOW)
def test_layers_are_called_by_position_and_by_name(network: Network, x: Tensor, level: str) -> None:
    bank = make(network, x)
    with bank.at(level):
        expected = network(x)
        network.named = True
        assert torch.equal(network(x), expected)
        network.linear.register_forward_pre_hook(lambda _, __: None)
        assert torch.equal(network(x), expected), "hooked"
    with make(network, x).at(level):  # calibrated by calls by name
        assert torch.equal(network(x), expected)


@pytest.mark.parametrize("level", LOW)
def test_signatures_are_those_of_the_layers(network: Network, x: Tensor, level: str) -> None:
    for name, leaf in make(network, x).layers(level).items():
        theirs = inspect.signature(network.get_submodule(name).forward)
        assert [*inspect.signature(leaf.forward).parameters] == [*theirs.parameters]


def double_output(_: nn.Module, __: Any, y: Tensor) -> Tensor:
    return 2 * y


def double_output_named(_: nn.Module, __: Any, kwargs: dict[str, Tensor], y: Tensor) -> Tensor:
    return 2 * y + len(kwargs)


def negate(_: nn.Module, args: Any) -> Any:
    return tuple(-x for x in args)


def negate_named(_: nn.Module, args: Any, kwargs: dict[str, Tensor]) -> Any:
    return tuple(-x for x in args), {name: -x for name, x in kwargs.items()}


HOOKS: dict[str, tuple[str, Callable[..., Any], dict[str, Any]]] = {
    "forward": ("register_forward_hook", double_output, {}),
    "forward with kwargs": ("register_forward_hook", double_output_named, {"with_kwargs": True}),
    "pre": ("register_forward_pre_hook", negate, {}),
    "pre with kwargs": ("register_forward_pre_hook", negate_named, {"with_kwargs": True}),
}


@pytest.mark.parametrize("moment", ["before", "after", "meanwhile"])
@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("level", LOW)
@torch.no_grad()
def test_hooks_of_a_layer_act_and_are_given_the_layer(
    network: Network, x: Tensor, level: str, kind: str, moment: str
) -> None:
    """Against the same hook around a copy's layer, carried out by hand."""
    way, hook, options = HOOKS[kind]
    layer, seen = network.linear, []
    plain = make(copy.deepcopy(network), x).layers(level)["linear"]

    def noted(module: nn.Module, *given: Any) -> Any:
        seen.append(module)
        return hook(module, *given)

    def register() -> None:
        getattr(layer, way)(noted, **options)

    if moment == "before":
        register()
    bank = LevelBank(network, LEVELS, ("linear",), lambda: network(-x if "pre" in kind else x))
    seen.clear()
    if moment == "after":
        register()
    with bank.at(level):
        if moment == "meanwhile":
            register()
        by_position = network.linear(x)
        by_name = network.linear(input=x)
    assert seen == [layer, layer]
    if kind == "pre":
        expected = plain(-x), plain(x)  # without kwargs, a hook sees positions alone
    elif kind == "pre with kwargs":
        expected = plain(-x), plain(-x)
    else:
        expected = 2 * plain(x), 2 * plain(x) + ("kwargs" in kind)
    assert torch.equal(by_position, expected[0])
    assert torch.equal(by_name, expected[1])
    assert "forward" not in vars(layer)


def test_a_hook_that_is_always_called_is_called_after_an_error(network: Network, x: Tensor) -> None:
    seen: list[Any] = []
    network.linear.register_forward_hook(
        lambda module, args, output: seen.append((module, output)), always_call=True
    )
    bank = make(network, x)
    seen.clear()
    with bank.at("w4a4"), pytest.raises(RuntimeError, match="shape"):
        network.linear(x[..., :5])
    assert seen == [(network.linear, None)]
    assert "forward" not in vars(network.linear), "as it was"


def test_hooks_of_all_modules_are_given_the_layer(network: Network, x: Tensor) -> None:
    bank = make(network, x)
    seen: list[nn.Module] = []
    hooks = nn.modules.module
    handle = hooks.register_module_forward_pre_hook(lambda module, _: seen.append(module))
    try:
        with bank.at("w4a4"):
            network(x)
    finally:
        handle.remove()
    assert seen == [network, network.linear, network.conv]


@pytest.mark.parametrize("level", LOW)
def test_everything_else_of_a_layer_is_its_own(network: Network, x: Tensor, level: str) -> None:
    bank, layer = make(network, x), network.linear
    layer.theirs = ["an attribute"]  # type: ignore[assignment]
    with bank.at(level):
        leaf = network.linear
        assert leaf is not layer
        assert leaf.bias is layer.bias
        assert leaf.theirs is layer.theirs
        assert leaf.out_features == 64
        assert get_parameter_dtype(network) == torch.float32
        assert [p is q for p, q in zip(leaf.parameters(), layer.parameters(), strict=True)]
        before = network(x)
        layer.bias = nn.Parameter(layer.bias + 1)
        assert leaf.bias is layer.bias
        casts = level == "native:bf16"  # its bias is cast when it is made
        assert torch.equal(network(x), before) == casts
        with pytest.raises(AttributeError, match="nothing_like_it"):
            _ = leaf.nothing_like_it


def test_a_layer_with_arithmetic_of_its_own_is_refused(network: Network, x: Tensor) -> None:
    class Other(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    bank = make(network, x)
    own = network.linear.forward
    network.linear.forward = lambda input: 2 * own(input)  # type: ignore[method-assign]
    with pytest.raises(UsageError, match="forward of layer linear is replaced by another function"):
        make(network, x)
    with bank.at("w4a4"), pytest.raises(UsageError, match="forward of layer Linear is replaced"):
        network(x)
    del network.linear.forward
    network.linear = Other(64, 64)
    with pytest.raises(UsageError, match=r"layer linear .Other, Parameter. has arithmetic of its"):
        make(network, x)


@pytest.mark.filterwarnings("ignore:`torch.distributed.reduce_op` is deprecated:FutureWarning")
def test_a_layer_that_is_quantized_already_is_refused(network: Network, x: Tensor) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(network, Int8WeightOnlyConfig(set_inductor_config=False))
    with pytest.raises(
        UsageError, match=r"layer linear .Linear, Int8Tensor. has arithmetic of its"
    ):
        LevelBank(network, ("fp32", "w8a8"), ("linear",))


class Transformer:
    """The denoiser of a tiny SD3, called directly."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.module = TINY["StableDiffusion3Pipeline"].build().transformer.to(dtype)
        self.names = quantized_layers(self.module)
        generator = torch.Generator().manual_seed(0)
        shapes = {
            "hidden_states": (2, 4, 8, 8),
            "encoder_hidden_states": (2, 12, T5_WIDTH),
            "pooled_projections": (2, 2 * CLIP_WIDTH),
        }
        self.inputs = {k: torch.randn(s, generator=generator).to(dtype) for k, s in shapes.items()}
        self.inputs["timestep"] = torch.full((2,), 600.0, dtype=dtype)

    @torch.no_grad()
    def __call__(self) -> Tensor:
        output: Tensor = self.module(**self.inputs, return_dict=False)[0]
        return output

    def at(self, level: str, mode: str = "resident") -> Tensor:
        with LevelBank(self.module, (level,), self.names, self, mode).at(level):
            return self()


F8 = torch.float8_e4m3fn


@pytest.mark.parametrize("mode", RESIDENCIES)
@pytest.mark.parametrize("level", LEVELS)
def test_layerwise_casting(level: str, mode: str) -> None:
    """Weights stored as fp8 are those of a model that was rounded to fp8 and has no hooks."""
    cast, plain = Transformer(), Transformer()
    cast.module.enable_layerwise_casting(storage_dtype=F8, compute_dtype=torch.float32)
    stored = [m for m in cast.module.modules() if "_diffusers_hook" in vars(m)]
    for name, module in cast.module.named_modules():
        if any(module is layer for layer in stored):
            for parameter in plain.module.get_submodule(name).parameters(recurse=False):
                parameter.data = parameter.data.to(F8).float()
    bank = LevelBank(cast.module, LEVELS, cast.names, cast, mode)
    told = LevelBank.memory(cast.module, LEVELS, cast.names).own
    expected = plain.at(level)
    for _ in range(2):
        with bank.at(level):
            assert torch.equal(cast(), expected)
        assert {p.dtype for layer in stored for p in layer.parameters()} == {F8}
    leaves = bank.layers(level).values()
    held = sum(t.numel() * t.element_size() for leaf in leaves for t in leaf.own.values())
    factors = 4 * sum(leaf.in_features for leaf in leaves) if "lr" in level else 0
    assert level == "fp32" or told[level] == held + factors


def test_layerwise_casting_computes_in_a_dtype_that_is_the_reference() -> None:
    """Also where most weights are stored in another."""
    cast = Transformer(torch.bfloat16)
    cast.module.enable_layerwise_casting(storage_dtype=F8, compute_dtype=torch.bfloat16)
    assert is_reference(Level.parse("bf16"), cast.module)
    assert is_reference(Level.parse("native:bf16"), cast.module)
    told = LevelBank.memory(cast.module, ("bf16", "w4a4"), cast.names)
    assert told.own.keys() == {"w4a4"}
    layers = [cast.module.get_submodule(name) for name in cast.names]
    assert {layer.weight.dtype for layer in layers} == {F8}
    assert told.own["w4a4"] == sum(2 * layer.weight.numel() for layer in layers)
    expected = cast()
    assert torch.equal(cast.at("bf16"), expected)
    assert not torch.equal(cast.at("w4a4"), expected)


@pytest.mark.parametrize("mode", RESIDENCIES)
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("kind", ["block_level", "leaf_level", "disk", "leaves on a disk"])
def test_group_offload(tmp_path: Path, kind: str, moment: str, mode: str) -> None:
    """With the CPU as both devices. On a disk, weights that are not loaded are nowhere else."""
    mine, plain = Transformer(), Transformer()
    expected = {level: plain.at(level) for level in LEVELS}
    cpu, disk = torch.device("cpu"), "disk" in kind
    options: dict[str, Any] = {"onload_device": cpu, "offload_device": cpu}
    if kind.startswith("leaf") or kind.startswith("leaves"):
        options["offload_type"] = "leaf_level"
    else:
        options |= {"offload_type": "block_level", "num_blocks_per_group": 1}
    options |= {"offload_to_disk_path": str(tmp_path)} if disk else {}
    if moment == "before":
        mine.module.enable_group_offload(**options)
    bank = LevelBank(mine.module, LEVELS, mine.names, mine, mode)
    if moment == "after":
        mine.module.enable_group_offload(**options)
    assert any(tmp_path.iterdir()) == disk
    for level in (*LEVELS, *reversed(LEVELS)):
        with bank.at(level):
            assert torch.equal(mine(), expected[level]), level


def test_a_derived_level_within_a_level_is_made_of_weights_on_a_disk(tmp_path: Path) -> None:
    mine, plain = Transformer(), Transformer()
    expected = plain.at("w4a4")
    cpu = torch.device("cpu")
    mine.module.enable_group_offload(
        cpu, cpu, offload_type="leaf_level", offload_to_disk_path=str(tmp_path)
    )
    bank = LevelBank(mine.module, ("fp32", "w8a8", "w4a4"), mine.names, None, "derive")
    with bank.at("w8a8"), bank.at("w4a4"):
        assert torch.equal(mine(), expected)


def test_simulated_layers_of_a_half_precision_denoiser_follow_its_dtype() -> None:
    network = Transformer(torch.bfloat16)
    layer = network.module.get_submodule(network.names[0])
    bank = LevelBank(network.module, ("bf16", "w8a8"), network.names)
    x = torch.randn(3, layer.in_features).bfloat16()
    weight = quantize_dequantize(layer.weight.detach(), "int8")
    expected = F.linear(quantize_dequantize(x, "int8"), weight, layer.bias)
    leaf = bank.layers("w8a8")[network.names[0]]
    assert leaf.own["weight"].dtype == torch.bfloat16
    assert torch.equal(leaf(x), expected)
