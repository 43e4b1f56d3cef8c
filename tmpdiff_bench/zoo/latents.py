"""The shared VAE of the embedded models, 64 px images to 4 x 16 x 16 latents (factor 4), and their
training data: latents of scenes with tokenized captions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTokenizer, T5TokenizerFast

from tmpdiff_bench.zoo.captions import Captioned, sample_captions
from tmpdiff_bench.zoo.scenes import render, sample_scenes
from tmpdiff_bench.zoo.text import MAX_TOKENS

LATENT_CHANNELS = 4
KL_WEIGHT = 3e-5  # per latent element: enough to keep the latents bounded, too little to blur
L1_WEIGHT = 0.1


def build_vae() -> AutoencoderKL:
    """An untrained VAE of the embedded size (0.66 M parameters)."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


class VaePart:
    """Trains the VAE on squared and absolute error and a small KL term."""

    name = "vae"

    def __init__(self, *, batch: int = 32, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.vae = build_vae()
        self.modules = nn.ModuleDict({"vae": self.vae})
        self._batch = batch
        validation = render(sample_scenes(512, seed=seed, split="validation"))
        self._validation = torch.from_numpy(validation) * 2 - 1

    def is_hidden_matrix(self, parameter: str) -> bool:
        return False

    def loss(self, iteration: int, generator: torch.Generator) -> Tensor:
        drawn = int(torch.randint(2**31, (), generator=generator))
        images = torch.from_numpy(render(sample_scenes(self._batch, seed=drawn))) * 2 - 1
        with torch.autocast("cpu", torch.bfloat16):
            posterior = self.vae.encode(images).latent_dist
            mean, std = posterior.mean.float(), posterior.std.float()
            noise = torch.randn(mean.shape, generator=generator)
            decoded = self.vae.decode(mean + std * noise).sample.float()
        kl = 0.5 * (mean**2 + std**2 - 1 - 2 * std.log()).mean()
        error = F.mse_loss(decoded, images) + L1_WEIGHT * F.l1_loss(decoded, images)
        total: Tensor = error + KL_WEIGHT * kl
        return total

    def evaluate(self) -> dict[str, float]:
        return {"psnr": reconstruction_psnr(self.vae, self._validation)}


def reconstruction_psnr(vae: AutoencoderKL, images: Tensor) -> float:
    """Mean over images of the PSNR (dB) of encode-decode; `images` (n, 3, H, W) in [-1, 1]."""
    values = []
    for chunk in images.split(64):
        decoded = vae.decode(vae.encode(chunk).latent_dist.mean).sample.clamp(-1, 1)
        mse = ((decoded - chunk) / 2).square().mean(dim=(1, 2, 3))
        values.append(-10 * mse.log10())
    return float(torch.cat(values).mean())


@dataclass(frozen=True)
class LatentSet:
    """`latents` (n, c, h, w) float16, scaled to unit variance; `clip`, `t5` (n, k, 24) token ids of
    the k captions of each scene; `placed` (n, k): captions that say where a single object lies.
    """

    latents: Tensor
    clip: Tensor
    t5: Tensor
    placed: Tensor

    def __len__(self) -> int:
        return len(self.latents)

    def save(self, path: Path) -> None:
        """Write the set as one safetensors file."""
        save_file(vars(self), path)

    @classmethod
    def load(cls, path: Path) -> LatentSet:
        """Read what `save` wrote."""
        return cls(**load_file(path))


def latent_statistics(vae: AutoencoderKL, n: int = 2048) -> tuple[float, float]:
    """Mean and standard deviation of the VAE's latents over `n` training scenes."""
    images = torch.from_numpy(render(sample_scenes(n, seed=0))) * 2 - 1
    with torch.no_grad():
        latents = torch.cat([vae.encode(x).latent_dist.mean for x in images.split(64)])
    return float(latents.mean()), float(latents.std())


def build_latents(
    vae: AutoencoderKL,
    tokenizers: tuple[CLIPTokenizer, T5TokenizerFast],
    n: int,
    *,
    seed: int,
    captions_per_scene: int = 4,
    reserved: bool = False,
) -> LatentSet:
    """Render, encode and caption about `n` scenes (those without a caption on this side drop out).

    `vae` must carry its `scaling_factor` and `shift_factor`.
    """
    split = "validation" if reserved else "train"
    scenes = sample_scenes(n, seed=seed, split=split)
    texts: list[list[Captioned | None]] = [[None] * captions_per_scene for _ in range(n)]
    for k in range(captions_per_scene):
        rows, captions = sample_captions(
            scenes, seed=seed * captions_per_scene + k, reserved=reserved
        )
        for row, captioned in zip(rows, captions, strict=True):
            texts[row][k] = captioned
    kept = np.array([i for i, row in enumerate(texts) if any(row)], dtype=np.int64)
    flat = [t or next(filter(None, texts[i])) for i in kept for t in texts[i]]
    said = [c.requirement for c in flat]
    placed = torch.tensor([r.kind == "places" and len(r.mentions) == 1 for r in said])
    scenes = scenes[kept]
    latents = []
    with torch.no_grad():
        for start in tqdm(range(0, len(kept), 64), desc="encoding scenes", unit="batch"):
            images = torch.from_numpy(render(scenes[slice(start, start + 64)])) * 2 - 1
            mean = vae.encode(images).latent_dist.mean
            scaled = (mean - vae.config.shift_factor) * vae.config.scaling_factor
            latents.append(scaled.half())
    words = [c.text for c in flat]
    clip, t5 = (token_ids(t, words).view(len(kept), captions_per_scene, -1) for t in tokenizers)
    return LatentSet(torch.cat(latents), clip, t5, placed.view(len(kept), captions_per_scene))


def token_ids(tokenizer: CLIPTokenizer | T5TokenizerFast, texts: list[str]) -> Tensor:
    """Ids (n, 24), padded and cut as the diffusers pipelines do."""
    ids: Tensor = tokenizer(
        texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
    return ids
