"""A LoRA loaded by the pipeline's own loader, before and after a plan is applied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.deploy.conftest import PLAN, REFERENCE, build, by_hand, call, denoisers
from tests.tiny import WARNINGS
from tmpdiff_bench import deploy
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.pipelines.layers import quantized_layers

pytestmark = [pytest.mark.filterwarnings(entry) for entry in WARNINGS]

RANK = 2


def save_lora(pipe: Any, folder: Path) -> Path:
    """A LoRA on the denoiser's attention projections, saved by the pipeline's own class."""
    place, denoiser = next(iter(denoisers(pipe).items()))
    generator = torch.Generator().manual_seed(3)
    weights: dict[str, Tensor] = {}
    for name in quantized_layers(denoiser):
        if name.endswith(("to_q", "to_v")):
            outputs, inputs = denoiser.get_parameter(f"{name}.weight").shape
            for part, shape in (("lora_A", (RANK, inputs)), ("lora_B", (outputs, RANK))):
                weights[f"{name}.{part}.weight"] = 0.2 * torch.randn(shape, generator=generator)
    pipe.save_lora_weights(folder, **{f"{place}_lora_layers": weights})
    return folder


@pytest.mark.parametrize(
    "name", ["StableDiffusion3Pipeline", "FluxPipeline", "StableDiffusionXLPipeline", "WanPipeline"]
)
def test_a_lora_reaches_every_level(name: str, tmp_path: Path) -> None:
    """All that a user does with one gives what it gives in a pipeline without a plan."""
    plain, pipe = build(name), build(name)
    lora = save_lora(plain, tmp_path)

    def check() -> tuple[Tensor, Tensor]:
        found = call(plain), by_hand(plain, PLAN)
        for plan, expected in zip((REFERENCE, PLAN), found, strict=True):
            deploy.apply(pipe, plan)
            assert torch.equal(call(pipe), expected)
        return found

    without = check()
    for both in (plain, pipe):
        both.load_lora_weights(lora, adapter_name="small")
    whole = check()
    assert not any(map(torch.equal, without, whole))
    for both in (plain, pipe):
        both.set_adapters("small", 0.5)
    half = check()
    assert not any(map(torch.equal, whole, half))
    for both in (plain, pipe):
        both.disable_lora()
    assert all(map(torch.equal, check(), without))
    for both in (plain, pipe):
        both.enable_lora()
        both.fuse_lora()
    check()
    for both in (plain, pipe):
        both.unfuse_lora()
    assert torch.allclose(check()[0], half[0], atol=1e-4)
    for both in (plain, pipe):
        both.unload_lora_weights()
    assert torch.allclose(check()[0], without[0], atol=1e-4)
    deploy.remove(pipe)
    for theirs, ours in zip(denoisers(plain).values(), denoisers(pipe).values(), strict=True):
        names = [name for name, _ in ours.named_modules()]
        assert names == [name for name, _ in theirs.named_modules()]
        assert not any("lora" in name for name in names)


def test_a_lora_that_was_there_before(pipe: Any, tmp_path: Path) -> None:
    bare = call(pipe)
    pipe.load_lora_weights(save_lora(pipe, tmp_path))
    untouched, expected = call(pipe), by_hand(pipe, PLAN)
    deploy.apply(pipe, PLAN)
    assert torch.equal(call(pipe), expected)
    deploy.apply(pipe, REFERENCE)
    assert torch.equal(call(pipe), untouched)
    pipe.unload_lora_weights()
    assert torch.equal(call(pipe), bare)
    deploy.remove(pipe)
    assert torch.equal(call(pipe), bare)


def test_one_that_is_fused_and_then_disabled(pipe: Any, tmp_path: Path) -> None:
    """Its next call takes it out of the weights, in whose place a level might stand."""
    lora = save_lora(pipe, tmp_path)
    bare = by_hand(pipe, PLAN)
    deploy.apply(pipe, PLAN)
    pipe.load_lora_weights(lora)
    pipe.fuse_lora()
    fused = call(pipe)
    pipe.disable_lora()
    assert torch.allclose(call(pipe), bare, atol=1e-4)
    assert not torch.allclose(fused, bare, atol=1e-4)
    assert not any(getattr(x, "merged", False) for x in pipe.transformer.modules())


def test_one_that_is_loaded_or_scaled_meanwhile(tmp_path: Path) -> None:
    def changing(pipe: Any) -> Tensor:
        def after_step(own: Any, step: int, _timestep: Any, inputs: Any) -> Any:
            if step == 0:
                own.load_lora_weights(tmp_path, adapter_name="small")
            if step == 1:
                own.set_adapters("small", 0.5)
            return inputs

        return call(pipe, callback_on_step_end=after_step)

    plain, pipe = build("FluxPipeline"), build("FluxPipeline")
    save_lora(plain, tmp_path)
    deploy.apply(pipe, PLAN)
    assert torch.equal(changing(pipe), by_hand(plain, PLAN, changing, whole=True))


def test_one_that_is_fused_meanwhile_is_refused(pipe: Any, tmp_path: Path) -> None:
    """It is written to the weights past all that counts."""

    def fuse(own: Any, step: int, _timestep: Any, inputs: Any) -> Any:
        if step == 1:
            own.fuse_lora()
        return inputs

    pipe.load_lora_weights(save_lora(pipe, tmp_path))
    deploy.apply(pipe, PLAN)
    with pytest.raises(UsageError, match=r"the transformer were written to by \.data during the c"):
        call(pipe, callback_on_step_end=fuse)
    found = call(pipe)
    deploy.remove(pipe)
    assert torch.equal(found, by_hand(pipe, PLAN))


def test_one_with_magnitudes_of_its_own(pipe: Any) -> None:
    """DoRA, which looks at the weight of the layer below it."""
    from peft import LoraConfig

    plain = build("StableDiffusion3Pipeline")
    config = LoraConfig(r=RANK, target_modules=["to_q"], use_dora=True, init_lora_weights=False)
    for both in (plain, pipe):
        torch.manual_seed(0)
        both.transformer.add_adapter(config)
    deploy.apply(pipe, PLAN)
    assert torch.equal(call(pipe), by_hand(plain, PLAN))


def test_layers_that_are_named_are_found_below_a_lora(pipe: Any, tmp_path: Path) -> None:
    layer = "transformer_blocks.0.attn.to_q"
    deploy.apply(pipe, PLAN, quantized=[layer])
    pipe.load_lora_weights(save_lora(pipe, tmp_path))
    found = call(pipe)
    deploy.remove(pipe)
    expected = by_hand(pipe, PLAN, layers=lambda _: (f"{layer}.base_layer",))
    assert torch.equal(found, expected)
