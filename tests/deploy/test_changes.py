"""What users do to a pipeline acts at every level, whenever they do it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.deploy.conftest import PLAN, REFERENCE, build, by_hand, call, traces
from tests.tiny import WARNINGS
from tmpdiff_bench import deploy
from tmpdiff_bench.errors import UsageError

pytestmark = [pytest.mark.filterwarnings(entry) for entry in WARNINGS]

SD, SD3, FLUX = "StableDiffusionPipeline", "StableDiffusion3Pipeline", "FluxPipeline"
LAYER = "transformer_blocks.1.attn.to_k"
CHANGES: list[Any] = []


def change(*names: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Registers something that users do, to be tried on the named pipelines."""

    def register(do: Callable[[Any], None]) -> Callable[[Any], None]:
        CHANGES.extend(pytest.param(name, do, id=f"{do.__name__}-{name}") for name in names)
        return do

    return register


def draw(pipe: Any, **options: Any) -> Tensor:
    """A run that begins with fresh processors, and with an image for IP-Adapters to look at."""
    if hasattr(pipe, "unet"):
        for processor in pipe.unet.attn_processors.values():
            vars(processor).pop("calls", None)
        embeds = torch.randn(4, 1, 32, generator=torch.Generator().manual_seed(5))
        options["ip_adapter_image_embeds"] = [embeds]
    return call(pipe, **options)


@change(SD)
def freeu(pipe: Any) -> None:
    pipe.enable_freeu(s1=0.5, s2=0.2, b1=1.5, b2=1.6)


@change(SD)
def ip_adapter(pipe: Any) -> None:
    load_ip_adapter(pipe.unet)
    pipe.set_ip_adapter_scale(0.7)


def load_ip_adapter(unet: Any) -> None:
    generator = torch.Generator().manual_seed(4)

    def weights(*shape: int) -> Tensor:
        return 0.3 * torch.randn(shape, generator=generator)

    dim = unet.config.cross_attention_dim
    attention: dict[str, Tensor] = {}
    layers = (name.replace("processor", "to_k") for name in unet.attn_processors if "attn2" in name)
    for i, width in enumerate(unet.get_submodule(layer).out_features for layer in layers):
        attention |= {f"{2 * i + 1}.to_{x}_ip.weight": weights(width, dim) for x in ("k", "v")}
    projection = {"proj.weight": weights(4 * dim, dim), "proj.bias": weights(4 * dim)}
    projection |= {"norm.weight": 1 + weights(dim), "norm.bias": weights(dim)}
    unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": attention}])


class Fading:
    """An attention processor whose work grows less with every call."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.calls = inner, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        drawn: Tensor = self.inner(*args, **kwargs)
        return drawn * 0.9**self.calls


@change(SD)
def stateful_processors(pipe: Any) -> None:
    pipe.unet.set_attn_processor({k: Fading(v) for k, v in pipe.unet.attn_processors.items()})


@change(SD3)
def hook_on_a_block(pipe: Any) -> None:
    blocks = pipe.transformer.transformer_blocks
    blocks[1].register_forward_hook(lambda _module, _args, output: (output[0], output[1] * 1.1))


@change(SD3)
def hooks_on_a_layer(pipe: Any) -> None:
    layer = pipe.transformer.get_submodule(LAYER)
    layer.register_forward_pre_hook(lambda module, args: (args[0] + module.bias.mean(),))
    layer.register_forward_hook(lambda module, _args, output: output * module.in_features / 30)


@change(SD3)
def patched_forward_of_a_block(pipe: Any) -> None:
    """As token merging does: fewer tokens in, as many out."""
    block = pipe.transformer.transformer_blocks[1]
    original = block.forward

    def merged(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        pairs = hidden_states.unflatten(1, (-1, 2)).mean(2)
        context, tokens = original(pairs, *args, **kwargs)
        return context, tokens.repeat_interleave(2, dim=1)

    block.forward = functools.wraps(original)(merged)


@change(SD)
def patched_class_of_a_block(pipe: Any) -> None:
    """As tomesd does."""
    for block in pipe.unet.modules():
        if type(block).__name__ == "BasicTransformerBlock":
            kind = type(block)

            def forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
                found: Tensor = super(type(self), self).forward(hidden_states, *args, **kwargs)
                return 0.5 * (found + hidden_states)

            block.__class__ = type("Halved", (kind,), {"forward": forward})


@change(SD3)
def weight_changed_in_place(pipe: Any) -> None:
    with torch.no_grad():
        pipe.transformer.get_submodule(LAYER).weight.mul_(-1)


@change(SD3)
def weight_replaced(pipe: Any) -> None:
    layer = pipe.transformer.get_submodule(LAYER)
    layer.weight = nn.Parameter(-layer.weight.detach())


@change(SD3)
def bias_changed(pipe: Any) -> None:
    with torch.no_grad():
        pipe.transformer.get_submodule(LAYER).bias.add_(0.5)


@change(SD3)
def layer_replaced(pipe: Any) -> None:
    parent, _, name = LAYER.rpartition(".")
    old = pipe.transformer.get_submodule(LAYER)
    new = nn.Linear(old.in_features, old.out_features, device=pipe.device)
    new.load_state_dict({"weight": old.weight.flip(0), "bias": old.bias.flip(0)})
    setattr(pipe.transformer.get_submodule(parent), name, new.requires_grad_(False))


@change(SD3)
def weights_loaded(pipe: Any) -> None:
    states = {name: 1.1 * tensor for name, tensor in pipe.transformer.state_dict().items()}
    pipe.transformer.load_state_dict(states)


@change(SD3)
def weights_assigned(pipe: Any) -> None:
    states = {name: 1.1 * tensor for name, tensor in pipe.transformer.state_dict().items()}
    pipe.transformer.load_state_dict(states, assign=True)


@change(SD3)
def denoiser_in_another_dtype(pipe: Any) -> None:
    pipe.to(torch.float64)


@change(SD)
def fused_projections(pipe: Any) -> None:
    pipe.unet.fuse_qkv_projections()
    with torch.no_grad():
        pipe.unet.get_submodule(
            "mid_block.attentions.0.transformer_blocks.0.attn1.to_qkv"
        ).weight.mul_(2)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("name", "do"), CHANGES)
def test_a_change_acts_at_every_level(name: str, do: Callable[[Any], None], after: bool) -> None:
    """Done before `apply`, or after a call."""
    other, pipe = build(name), build(name)
    unchanged = by_hand(other, PLAN, draw)
    do(other)
    plain, changed = draw(other), by_hand(other, PLAN, draw)
    assert not torch.equal(unchanged, changed)
    if after:
        deploy.apply(pipe, PLAN)
        assert torch.equal(draw(pipe), unchanged)
    do(pipe)
    draw(pipe)  # the first call of a pipeline leaves traces of its own
    before = traces(pipe)
    for plan, drawn in ((PLAN, changed), (REFERENCE, plain), (PLAN, changed)):
        deploy.apply(pipe, plan)
        assert torch.equal(draw(pipe), drawn)
    deploy.remove(pipe)
    assert torch.equal(draw(pipe), plain)
    assert {**traces(pipe), "class": 0} == {**before, "class": 0}


@pytest.mark.parametrize(
    ("name", "do"), [x for x in CHANGES if denoiser_in_another_dtype not in x.values]
)
def test_a_change_acts_from_the_step_on_that_it_is_made_at(
    name: str, do: Callable[[Any], None]
) -> None:
    def changing(pipe: Any) -> Tensor:
        def after_step(own: Any, step: int, _timestep: Any, inputs: Any) -> Any:
            if step == 1:
                do(own)
            return inputs

        return draw(pipe, callback_on_step_end=after_step)

    pipe = build(name)
    deploy.apply(pipe, PLAN)
    if do in (ip_adapter, fused_projections):
        with pytest.raises(UsageError, match="layers were added to the unet during the call"):
            changing(pipe)
        return
    found = changing(pipe)
    assert torch.equal(found, by_hand(build(name), PLAN, changing, whole=True))
    deploy.remove(pipe)
    assert not torch.equal(found, draw(pipe))
