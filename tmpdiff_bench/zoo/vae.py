"""The shared VAE of the embedded models: 64 px images to 4 x 16 x 16 latents (factor 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from tmpdiff_bench.zoo.scenes import render, sample_scenes

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
