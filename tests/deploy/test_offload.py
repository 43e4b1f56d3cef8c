"""Plans beside offloading and casting of weights. Without an accelerator the CPU is every device:
diffusers and accelerate set the same hooks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.hooks import apply_group_offloading
from torch import nn

from tests.deploy.conftest import DEVICE, PLAN, build, by_hand, call, traces
from tests.deploy.test_adapters import save_lora
from tests.processor import needs
from tests.tiny import WARNINGS
from tmpdiff_bench import deploy
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.plan import PrecisionPlan

pytestmark = [pytest.mark.filterwarnings(entry) for entry in WARNINGS]

CPU, ONTO = torch.device("cpu"), torch.device(DEVICE)


@pytest.mark.parametrize("before", [True, False])
def test_model_offloading(pipe: Any, before: bool) -> None:
    expected, untouched = by_hand(pipe, PLAN), call(pipe)
    if before:
        pipe.enable_model_cpu_offload(device=DEVICE)
    deploy.apply(pipe, PLAN)
    if not before:
        assert torch.equal(call(pipe), expected)
        pipe.enable_model_cpu_offload(device=DEVICE)
    assert "_hf_hook" in vars(pipe.transformer)
    for _ in range(2):
        assert torch.equal(call(pipe), expected)
    deploy.remove(pipe)
    assert "_hf_hook" in vars(pipe.transformer)
    assert torch.equal(call(pipe), untouched)
    pipe.remove_all_hooks()


@pytest.mark.parametrize("moment", ["before", "after", "after, as a function"])
@pytest.mark.parametrize("kind", ["block_level", "leaf_level", "disk"])
def test_group_offloading(pipe: Any, moment: str, kind: str, tmp_path: Path) -> None:
    """On a disk, weights that are not loaded are nowhere else."""
    expected, untouched = by_hand(pipe, PLAN), call(pipe)
    options: dict[str, Any] = {"onload_device": ONTO, "offload_device": CPU}
    options |= {"offload_type": "leaf_level" if kind == "leaf_level" else "block_level"}
    options |= {} if kind == "leaf_level" else {"num_blocks_per_group": 1}
    options |= {"offload_to_disk_path": str(tmp_path)} if kind == "disk" else {}
    if moment == "before":
        pipe.transformer.enable_group_offload(**options)
    deploy.apply(pipe, PLAN)
    if moment == "after":
        assert torch.equal(call(pipe), expected)
        pipe.transformer.enable_group_offload(**options)
    elif moment != "before":
        apply_group_offloading(pipe.transformer, **options)
    for _ in range(2):
        assert torch.equal(call(pipe), expected)
    before = traces(pipe)
    deploy.remove(pipe)
    assert {**traces(pipe), "class": 0} == {**before, "class": 0}
    assert torch.equal(call(pipe), untouched)


def test_offloaded_levels_are_made_once(pipe: Any, tmp_path: Path, capsys: Any) -> None:
    """Though weights on a disk lie elsewhere at every look."""
    pipe.transformer.enable_group_offload(
        ONTO, CPU, "block_level", num_blocks_per_group=1, offload_to_disk_path=str(tmp_path)
    )
    deploy.apply(pipe, PLAN)
    assert capsys.readouterr().err.count("weights:") == 1
    for _ in range(2):
        call(pipe)
    assert capsys.readouterr().err == ""


def test_group_offloading_and_a_lora(pipe: Any, tmp_path: Path) -> None:
    plain = build("StableDiffusion3Pipeline")
    lora = save_lora(plain, tmp_path)
    plain.load_lora_weights(lora)
    expected = by_hand(plain, PLAN)
    deploy.apply(pipe, PLAN)
    pipe.transformer.enable_group_offload(ONTO, CPU, "block_level", num_blocks_per_group=2)
    call(pipe)
    pipe.load_lora_weights(lora)
    assert torch.equal(call(pipe), expected)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline", "StableDiffusionXLPipeline"])
def test_layerwise_casting(name: str, before: bool) -> None:
    """Levels round what is stored, and compute in what it is computed in."""
    pipe, plain = build(name), build(name)
    place = "unet" if hasattr(pipe, "unet") else "transformer"
    stored = torch.float8_e4m3fn

    def cast(of: Any) -> None:
        getattr(of, place).enable_layerwise_casting(stored, compute_dtype=torch.float32)

    cast(plain)
    untouched = call(plain)
    if before:
        cast(pipe)
    deploy.apply(pipe, PLAN)
    if not before:
        call(pipe)
        cast(pipe)
    found = call(pipe)
    assert torch.equal(call(pipe), found)
    assert torch.equal(found, by_hand(uncast(build(name), place, getattr(plain, place)), PLAN))
    deploy.remove(pipe)
    assert torch.equal(call(pipe), untouched)


def uncast(pipe: Any, place: str, stored: nn.Module) -> Any:
    """A pipeline with the stored weights as they are computed with, and without hooks."""
    states = {name: tensor.float() for name, tensor in stored.state_dict().items()}
    getattr(pipe, place).load_state_dict(states)
    return pipe


@needs("native:bf16", DEVICE)
def test_native_levels_of_offloaded_weights_are_refused(
    pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their kernels pack weights for the device where these are. It is another one when weights
    are made anew, after a LoRA was loaded.
    """
    monkeypatch.setattr(type(pipe), "_execution_device", torch.device("cuda"))
    pipe.to(CPU)
    native = PrecisionPlan.parse("fp32 native:bf16*3")
    with pytest.raises(UsageError, match=r"offloaded to cpu and run on cuda, whose kernels want"):
        deploy.apply(pipe, native)
    deploy.apply(pipe, PLAN)
    monkeypatch.undo()
    deploy.apply(pipe, native)
    monkeypatch.setattr(type(pipe), "_execution_device", torch.device("cuda"))
    with pytest.raises(UsageError, match="take simulated levels"):
        call(pipe)


@pytest.mark.parametrize(
    "level",
    [pytest.param(f"native:{x}", marks=needs(f"native:{x}", DEVICE)) for x in ("bf16", "w8a8")],
)
def test_native_levels_follow_changes(pipe: Any, level: str) -> None:
    """Of biases too, which some of them hold casts of."""
    deploy.apply(pipe, PrecisionPlan.uniform(level, 4))
    before = call(pipe)
    with torch.no_grad():
        pipe.transformer.transformer_blocks[1].attn.to_k.bias.add_(1.0)
    changed = call(pipe)
    deploy.remove(pipe)
    deploy.apply(pipe, PrecisionPlan.uniform(level, 4))
    assert torch.equal(call(pipe), changed)
    assert not torch.equal(changed, before)


def test_a_pipeline_in_another_dtype(pipe: Any) -> None:
    """The first cast rounds for good."""
    deploy.apply(pipe, PLAN)
    call(pipe)
    for dtype in (torch.bfloat16, torch.float32):
        pipe.to(dtype)
        found = call(pipe)
        deploy.remove(pipe)
        assert torch.equal(found, by_hand(pipe, PLAN))
        deploy.apply(pipe, PLAN)
