"""Plans beside what users do to denoisers: offload, change weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.hooks import apply_group_offloading

from tests.deploy.conftest import call, exchanged, of_its_own
from tests.deploy.test_adapters import small_lora
from tmpdiff_bench import deploy
from tmpdiff_bench.deploy.twins import check_place
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.levels import LevelBank
from tmpdiff_bench.pipelines import quantized_layers
from tmpdiff_bench.plan import PrecisionPlan

PLAN = PrecisionPlan.parse("fp32 w4a4 w8a8 w4a4")


@pytest.mark.parametrize("before", [True, False])
def test_model_offloading(pipe: Any, before: bool) -> None:
    """With the CPU as the device that runs: diffusers sets the same hooks."""
    deploy.apply(pipe, PLAN)
    expected = call(pipe)
    deploy.remove(pipe)
    denoiser = pipe.transformer
    if before:
        pipe.enable_model_cpu_offload(device="cpu")
    deploy.apply(pipe, PLAN)
    if not before:
        pipe.enable_model_cpu_offload(device="cpu")
    assert "_hf_hook" in vars(pipe.transformer)
    for _ in range(2):
        assert torch.equal(call(pipe), expected)
    deploy.remove(pipe)
    assert pipe.transformer is denoiser
    assert "_hf_hook" in vars(denoiser)
    call(pipe)
    pipe.remove_all_hooks()


def test_changed_weights_reach_all_levels(pipe: Any) -> None:
    deploy.apply(pipe, PrecisionPlan.uniform("w4a4", 4))
    before = call(pipe)
    weight = pipe.transformer.transformer_blocks[0].attn.to_q.weight
    saved = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(-1)
    changed = call(pipe)
    deploy.remove(pipe)
    deploy.apply(pipe, PrecisionPlan.uniform("w4a4", 4))
    assert torch.equal(call(pipe), changed)
    assert not torch.equal(changed, before)
    with torch.no_grad():
        weight.copy_(saved)
    assert torch.equal(call(pipe), before)


def test_offloading_layer_by_layer_is_refused(pipe: Any) -> None:
    layer = pipe.transformer.transformer_blocks[0]
    layer._hf_hook = object()
    try:
        with pytest.raises(UsageError, match="enable_sequential_cpu_offload"):
            deploy.apply(pipe, PLAN)
    finally:
        del layer._hf_hook


@pytest.mark.parametrize("moment", ["before", "after", "after, as a function"])
@pytest.mark.parametrize("kind", ["block_level", "leaf_level", "disk"])
def test_group_offloading(untrained_sd3: Any, moment: str, kind: str, tmp_path: Path) -> None:
    """With the CPU as both devices. On a disk, weights that are not loaded are nowhere else."""
    pipe = of_its_own(untrained_sd3)
    untouched = call(pipe)
    deploy.apply(pipe, PLAN)
    expected = call(pipe)
    deploy.remove(pipe)
    cpu = torch.device("cpu")
    options: dict[str, Any] = {"onload_device": cpu, "offload_device": cpu}
    options |= {"offload_type": "leaf_level" if kind == "leaf_level" else "block_level"}
    options |= {} if kind == "leaf_level" else {"num_blocks_per_group": 1}
    options |= {"offload_to_disk_path": str(tmp_path)} if kind == "disk" else {}
    if moment == "before":
        pipe.transformer.enable_group_offload(**options)
    deploy.apply(pipe, PLAN)
    if moment == "after":
        pipe.transformer.enable_group_offload(**options)
    elif moment != "before":
        apply_group_offloading(pipe.transformer, **options)
    for _ in range(2):
        assert torch.equal(call(pipe), expected)
    for level in ("w4a4", "w8a8"):
        hooked = [
            m for m in pipe.transformer._made[level].modules() if "_diffusers_hook" in vars(m)
        ]
        assert len(hooked) > 1
    deploy.remove(pipe)
    assert torch.equal(call(pipe), untouched)


def test_group_offloading_and_a_lora(untrained_sd3: Any, tmp_path: Path) -> None:
    pipe, plain = of_its_own(untrained_sd3), of_its_own(untrained_sd3)
    lora = small_lora(plain, tmp_path)
    plain.load_lora_weights(lora)
    expected = exchanged(plain, PLAN)
    deploy.apply(pipe, PLAN)
    cpu = torch.device("cpu")
    pipe.transformer.enable_group_offload(cpu, cpu, "block_level", num_blocks_per_group=2)
    call(pipe)
    pipe.load_lora_weights(lora)
    assert torch.equal(call(pipe), expected)
    deploy.remove(pipe)
    assert torch.equal(call(pipe), call(plain))


def test_native_levels_of_offloaded_weights_are_refused(pipe: Any) -> None:
    """Their kernels pack weights for the device where these are."""
    levels, cuda = ("fp32", "native:bf16"), torch.device("cuda")
    with pytest.raises(UsageError, match=r"native:bf16 can't be made of weights that are offload"):
        check_place(pipe.transformer, levels, cuda)
    check_place(pipe.transformer, levels, torch.device("cpu"))
    check_place(pipe.transformer, ("fp32", "w8a8"), cuda)


def test_memory_is_told_before_it_is_taken(pipe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    deploy.apply(pipe, PLAN)
    told = capsys.readouterr().err
    names = quantized_layers(pipe.transformer.original)
    assert told == f"{LevelBank.memory(pipe.transformer.original, ('w4a4', 'w8a8'), names)}\n"
    deploy.apply(pipe, PrecisionPlan(PLAN.levels[::-1]))
    assert capsys.readouterr().err == ""
