"""What is changed of a loaded pipeline: another scheduler, a LoRA, tiles of the VAE."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor

from tests.tiny import TINY, WARNINGS
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.pipelines import load_pipeline
from tmpdiff_bench.pipelines.changes import Lora, scheduler_choice, tile

pytestmark = [pytest.mark.filterwarnings(text) for text in WARNINGS]

NAME = "StableDiffusionPipeline"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion, saved."""
    path = tmp_path_factory.mktemp("saved")
    TINY[NAME].build().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of its UNet, of random weights."""
    pipe = TINY[NAME].build()
    torch.manual_seed(0)
    config = LoraConfig(r=4, init_lora_weights=False, target_modules=["to_q", "to_k"])
    pipe.unet.add_adapter(config, adapter_name="mine")
    path = tmp_path_factory.mktemp("lora")
    weights = get_peft_model_state_dict(pipe.unet, adapter_name="mine")
    type(pipe).save_lora_weights(path, unet_lora_layers=weights)
    return path / "pytorch_lora_weights.safetensors"


@torch.no_grad()
def drawn(pipe: Any) -> Tensor:
    arguments = {**TINY[NAME].call, **TINY[NAME].each(1), "num_inference_steps": 2}
    generator = torch.Generator().manual_seed(0)
    found: Tensor = pipe(**arguments, generator=generator, output_type="latent").images
    return found


def test_a_scheduler_keeps_the_settings_of_the_one_before(folder: Path) -> None:
    text = "EulerDiscreteScheduler:use_karras_sigmas=true,timestep_spacing=trailing"
    pipe = load_pipeline(weights=folder, scheduler=text).pipeline
    before = TINY[NAME].build()
    assert isinstance(pipe.scheduler, EulerDiscreteScheduler)
    assert pipe.scheduler.config.use_karras_sigmas is True
    assert pipe.scheduler.config.timestep_spacing == "trailing"
    assert pipe.scheduler.config.beta_start == before.scheduler.config.beta_start
    assert not torch.equal(drawn(pipe), drawn(before))
    before.scheduler = EulerDiscreteScheduler.from_config(
        before.scheduler.config, use_karras_sigmas=True, timestep_spacing="trailing"
    )
    assert torch.equal(drawn(pipe), drawn(before))


def test_settings_are_json_or_text() -> None:
    make = scheduler_choice("DDIMScheduler:trained_betas=[0.1,0.2],steps_offset=1,beta_schedule=x")
    found = make(DDIMScheduler()).config
    assert (found.trained_betas, found.steps_offset, found.beta_schedule) == ([0.1, 0.2], 1, "x")
    plain = scheduler_choice("FlowMatchHeunDiscreteScheduler")(DDIMScheduler())
    assert isinstance(plain, FlowMatchHeunDiscreteScheduler)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "EulerDiscreteSchedulr",
            "'EulerDiscreteSchedulr': did you mean 'EulerDiscreteScheduler'",
        ),
        ("AutoencoderKL", "unknown scheduler 'AutoencoderKL'"),
        ("KarrasDiffusionSchedulers", "unknown scheduler"),
        ("EulerDiscreteScheduler:use_karas=1", "'use_karas': did you mean 'use_karras_sigmas'"),
        ("EulerDiscreteScheduler:shift", "'shift' has no value: write key=value"),
        ("DPMSolverMultistepScheduler:algorithm_type=foo", "can't be made: foo is not implemented"),
    ],
)
def test_schedulers_that_are_none(text: str, message: str, folder: Path) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        load_pipeline(weights=folder, scheduler=text)
    assert "\n" not in str(caught.value)


def test_what_a_scheduler_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = type("DPMSolverSDEScheduler", (), {"_backends": ["torch", "torch_of_mine"]})
    monkeypatch.setattr("diffusers.DPMSolverSDEScheduler", absent)
    with pytest.raises(UsageError, match=r"packages that are not here: torch_of_mine$"):
        scheduler_choice("DPMSolverSDEScheduler")


@pytest.mark.parametrize(("suffix", "scale"), [("", 1.0), (":0.5", 0.5), (":-1e-1", -0.1)])
def test_a_lora_is_that_of_diffusers(suffix: str, scale: float, folder: Path, lora: Path) -> None:
    loaded = load_pipeline(weights=folder, lora=f"{lora}{suffix}", staged=True)
    assert loaded.later is None, "it needs the denoiser's weights"
    digest = hashlib.sha256(lora.read_bytes()).hexdigest()
    assert loaded.adapter == f"{lora.name}:{scale:g} sha256 {digest[:16]}"
    expected = TINY[NAME].build()
    assert not torch.equal(drawn(loaded.pipeline), drawn(expected))
    expected.load_lora_weights(lora.parent, weight_name=lora.name, adapter_name="mine")
    expected.set_adapters(["mine"], [scale])
    assert torch.equal(drawn(loaded.pipeline), drawn(expected))


def test_loras_that_do_not_fit(folder: Path, lora: Path, tmp_path: Path) -> None:
    damaged, pickled = tmp_path / "damaged.safetensors", tmp_path / "lora.bin"
    damaged.write_bytes(b"12")
    pickled.write_bytes(b"pickle")
    refused = {
        "absent.safetensors": "there is no LoRA file absent.safetensors: write",
        f"{lora}:much": "there is no LoRA file",
        f"{lora}:1.2.3": "scale 1.2.3 of LoRA",
        f"{lora}:1e999": "scale 1e999 of LoRA",
        str(pickled): "pickled weights are not loaded",
        str(damaged): "does not fit a StableDiffusionPipeline: ",
    }
    for text, message in refused.items():
        with pytest.raises(UsageError, match=message) as caught:
            load_pipeline(weights=folder, lora=text)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="does not fit a FluxPipeline: it has no weights for any"):
        Lora(lora, 1.0).add_to(TINY["FluxPipeline"].build())
    with pytest.raises(UsageError, match="a DiTPipeline takes no LoRA"):
        Lora(lora, 1.0).add_to(TINY["DiTPipeline"].build())


def test_tiles_bound_what_the_decoder_sees() -> None:
    whole, tiled = load_pipeline("sd3"), load_pipeline("sd3", vae_tile=32, staged=True)
    seen: list[int] = []
    tiled.pipeline.vae.decoder.register_forward_pre_hook(
        lambda _, inputs: seen.append(max(inputs[0].shape[-2:]))
    )
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        images = [m.pipeline.vae.decode(latents).sample for m in (whole, tiled)]
    assert max(seen) == 8
    assert images[0].shape == images[1].shape
    assert 0 < (images[0] - images[1]).abs().mean() < 0.2


@pytest.mark.parametrize("side", [12, 34, 64])
def test_tiles_of_other_sizes_are_refused_before_weights_are_loaded(
    side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("diffusers.DiffusionPipeline.from_pretrained")
    message = "multiples of 4 from 16, and below the 64 that it was trained for"
    with pytest.raises(UsageError, match=f"--vae-tile is {side}: .*{message}"):
        load_pipeline("sd3", vae_tile=side)


def test_vaes_without_tiles_of_one_size_are_refused() -> None:
    with pytest.raises(UsageError, match="VAEs of class AutoencoderKLWan can't be tiled"):
        tile(TINY["WanPipeline"].build().vae, 32)
    with pytest.raises(UsageError, match="pipelines without a VAE can't be tiled"):
        tile(None, 32)
