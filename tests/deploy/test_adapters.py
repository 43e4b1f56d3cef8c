"""A LoRA loaded by the pipeline's own loader, before and after a plan is applied."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.deploy.conftest import call, exchanged, of_its_own, place_of
from tmpdiff_bench import deploy
from tmpdiff_bench.pipelines import quantized_layers
from tmpdiff_bench.plan import PrecisionPlan

# diffusers 0.42 converts tensors in a way that NumPy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PLAN = PrecisionPlan.parse("w4a4 fp32 w8a8")
REFERENCE = PrecisionPlan.uniform("fp32", len(PLAN))
RANK = 2


def small_lora(pipe: Any, folder: Path) -> Path:
    """A LoRA on the denoiser's attention projections, saved by the pipeline's own class."""
    denoiser = getattr(pipe, place_of(pipe))
    generator = torch.Generator().manual_seed(3)
    weights: dict[str, Tensor] = {}
    for name in quantized_layers(denoiser):
        if name.endswith(("to_q", "to_v")):
            outputs, inputs = denoiser.get_submodule(name).weight.shape
            for part, shape in (("lora_A", (RANK, inputs)), ("lora_B", (outputs, RANK))):
                weights[f"{name}.{part}.weight"] = 0.2 * torch.randn(shape, generator=generator)
    pipe.save_lora_weights(folder, **{f"{place_of(pipe)}_lora_layers": weights})
    return folder


def run(pipe: Any) -> Tensor:
    return call(pipe, len(PLAN), height=64, width=64)


@pytest.mark.parametrize("family", ["sd3", "flux", "sdxl"])
def test_a_lora_reaches_every_level(
    untrained: Callable[[str], Any], family: str, tmp_path: Path
) -> None:
    """All that a user does with one gives what it gives in a pipeline without a plan."""
    plain, pipe = of_its_own(untrained(family)), of_its_own(untrained(family))
    lora = small_lora(plain, tmp_path)
    size = {"height": 64, "width": 64}

    def check() -> tuple[Tensor, Tensor]:
        found = []
        for plan, expected in ((REFERENCE, run(plain)), (PLAN, exchanged(plain, PLAN, **size))):
            deploy.apply(pipe, plan)
            assert torch.equal(run(pipe), expected)
            found.append(expected)
        return found[0], found[1]

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
        both.fuse_lora()
    check()
    for both in (plain, pipe):
        both.unfuse_lora()
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(check()[:1], half[:1], strict=True))
    for both in (plain, pipe):
        both.unload_lora_weights()
    check()
    deploy.remove(pipe)
    names = [[n for n, _ in getattr(p, place_of(p)).named_modules()] for p in (plain, pipe)]
    assert names[0] == names[1]
    assert not any("lora" in name for name in names[1])


def test_a_lora_that_was_there_before(untrained_sd3: Any, tmp_path: Path) -> None:
    pipe = of_its_own(untrained_sd3)
    bare = run(pipe)
    pipe.load_lora_weights(small_lora(pipe, tmp_path))
    untouched, expected = run(pipe), exchanged(pipe, PLAN, height=64, width=64)
    deploy.apply(pipe, PLAN)
    assert torch.equal(run(pipe), expected)
    deploy.apply(pipe, REFERENCE)
    assert torch.equal(run(pipe), untouched)
    pipe.unload_lora_weights()
    assert torch.equal(run(pipe), bare)
    deploy.remove(pipe)
    assert torch.equal(run(pipe), bare)


def test_layers_that_the_user_names_are_found_below_a_lora(
    untrained_sd3: Any, tmp_path: Path
) -> None:
    pipe = of_its_own(untrained_sd3)
    layer = "transformer_blocks.0.attn.to_q"
    deploy.apply(pipe, PLAN, quantized=[layer])
    pipe.load_lora_weights(small_lora(pipe, tmp_path))
    run(pipe)
    inner = pipe.transformer._made["w4a4"].get_submodule(f"{layer}.base_layer")
    assert type(inner).__name__ == "SimulatedLinear"


def test_what_is_set_on_it_stays_after_it(pipe: Any) -> None:
    """Loaders of diffusers note on the denoiser what they have replaced."""
    denoiser = pipe.transformer
    deploy.apply(pipe, PLAN)
    pipe.transformer.note = "kept"
    deploy.remove(pipe)
    assert pipe.transformer is denoiser
    assert denoiser.note == "kept"
    del denoiser.note
