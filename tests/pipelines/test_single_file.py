"""A whole pipeline in one .safetensors file, laid out as its first authors did."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING
from safetensors.torch import save_file
from torch import Tensor

from tests.tiny import TINY, WARNINGS
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.pipelines import load_pipeline
from tmpdiff_bench.pipelines.parts import PartSizes

pytestmark = [pytest.mark.filterwarnings(text) for text in WARNINGS]

NAME = "StableDiffusionPipeline"
LAYERS = 2  # of a block of the tiny UNet
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def built() -> Any:
    return TINY[NAME].build()


@pytest.fixture(scope="module")
def file(built: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline in the layout of CompVis's latent-diffusion."""
    unet, vae = built.unet.state_dict(), built.vae.state_dict()
    blocks = len(built.vae.config.block_out_channels)
    encoder = built.text_encoder.state_dict()
    tensors = {
        **{f"model.diffusion_model.{unet_name(k)}": v for k, v in unet.items()},
        **{f"first_stage_model.{vae_name(k, blocks)}": v for k, v in vae.items()},
        **{f"cond_stage_model.transformer.{clip_name(k)}": v for k, v in encoder.items()},
    }
    path = tmp_path_factory.mktemp("single") / "tiny.safetensors"
    save_file({k: v.contiguous() for k, v in tensors.items()}, path)
    return path


def unet_name(name: str) -> str:
    known: dict[str, str] = DIFFUSERS_TO_LDM_MAPPING["unet"]["layers"]
    if name in known:
        return known[name]
    side, _, rest = name.partition(".")
    block, rest = (0, rest) if side == "mid_block" else (int(rest[0]), rest[2:])
    kind, index, rest = rest.split(".", 2)
    number, within = int(index), {"resnets": "0", "attentions": "1"}.get(kind)
    if kind == "resnets":
        rest = re.sub("|".join(RESNET), lambda found: RESNET[found[0]], rest)
    if side == "mid_block":
        return f"middle_block.{1 if kind == 'attentions' else 2 * number}.{rest}"
    at = block * (LAYERS + 1) + number
    if side == "down_blocks":
        if kind == "downsamplers":
            return f"input_blocks.{at + 1 + LAYERS}.0.op.{rest.removeprefix('conv.')}"
        return f"input_blocks.{at + 1}.{within}.{rest}"
    if kind == "upsamplers":  # after the attention
        return f"output_blocks.{at + LAYERS}.2.{rest}"
    return f"output_blocks.{at}.{within}.{rest}"


def vae_name(name: str, blocks: int) -> str:
    name = re.sub(r"up_blocks\.(\d)", lambda m: f"up.{blocks - 1 - int(m[1])}", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    if "mid_block.attentions.0" in name:
        name = re.sub("|".join(ATTENTION), lambda found: ATTENTION[found[0]], name)
        name = name.replace("mid_block.attentions.0", "mid.attn_1")
    plain = {
        "down_blocks": "down",
        "resnets": "block",
        "conv_shortcut": "nin_shortcut",
        "downsamplers.0": "downsample",
        "upsamplers.0": "upsample",
        "conv_norm_out": "norm_out",
    }
    for ours, theirs in plain.items():
        name = name.replace(ours, theirs)
    return name


def clip_name(name: str) -> str:
    return name if name.startswith("text_model.") else f"text_model.{name}"


@torch.no_grad()
def drawn(pipe: Any) -> Tensor:
    arguments = {**TINY[NAME].call, **TINY[NAME].each(1), "num_inference_steps": 2}
    generator = torch.Generator().manual_seed(0)
    found: Tensor = pipe(**arguments, generator=generator, output_type="latent").images
    return found


def test_a_single_file_is_the_pipeline_that_it_holds(
    built: Any, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings and tokenizers come from the hub's cache, as of the repository of its kind."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--stable-diffusion-v1-5--stable-diffusion-v1-5"
    built.save_pretrained(repository / "snapshots" / ("0" * 40))
    for weights in repository.rglob("*.safetensors"):
        weights.unlink()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    told: list[PartSizes] = []
    loaded = load_pipeline(weights=file, staged=True, announce=told.append)
    assert type(loaded.pipeline) is type(built)
    assert loaded.title == f"tiny ({file}, 0.4 M)"
    assert loaded.digest == hashlib.sha256(file.read_bytes()).hexdigest()
    assert loaded.later is None
    assert torch.equal(drawn(loaded.pipeline), drawn(built))
    modules = (built.unet, built.vae, built.text_encoder)
    assert told[0].parts == {
        file.name: sum(p.numel() * 4 for module in modules for p in module.parameters())
    }
    with pytest.raises(UsageError, match="but --model flux takes a FluxPipeline"):
        load_pipeline("flux", weights=file)


def test_what_a_single_file_lacks_is_said(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    damaged, pickled = tmp_path / "damaged.safetensors", tmp_path / "old.ckpt"
    damaged.write_bytes(file.read_bytes()[:100])
    shutil.copy(file, pickled)
    refused: dict[str, dict[str, Any]] = {
        "settings and tokenizers of stable-diffusion-v1-5/": {"weights": file},
        "damaged.safetensors is no safetensors file, or damaged": {"weights": damaged},
        "old.ckpt is no .safetensors file; pickled": {"weights": pickled},
        "there is no file": {"weights": tmp_path / "absent.safetensors"},
        "revision 'v1' is of a hub id": {"weights": file, "revision": "v1"},
        "variant 'fp16' is of files in a folder": {"weights": file, "variant": "fp16"},
    }
    for message, options in refused.items():
        with pytest.raises(UsageError, match=message) as caught:
            load_pipeline(**options)
        assert "\n" not in str(caught.value)
