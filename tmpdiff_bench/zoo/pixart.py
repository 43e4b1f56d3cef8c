"""The embedded PixArt-Sigma: a 1.8 M parameter diffusion transformer with T5 cross-attention.

Trained on velocities with PixArt's own linear betas, and sampled by DPM-Solver++.
"""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor, nn
from transformers import T5EncoderModel, T5TokenizerFast

from tmpdiff_bench.zoo.denoising import Batch, Recipe, diffused
from tmpdiff_bench.zoo.latents import LATENT_CHANNELS, token_ids
from tmpdiff_bench.zoo.text import T5_WIDTH, lowered_ids

WIDTH, HEADS, LAYERS = 128, 4, 6
SIZE, PATCH = 16, 2
# The class's position codes are made for 32 tokens a side and more; on 8 they differ little between
# neighbours, unless the grid is stretched.
INTERPOLATION = 0.125


def build_pipeline(
    vae: AutoencoderKL, tokenizer: T5TokenizerFast, encoder: T5EncoderModel, *, seed: int
) -> PixArtSigmaPipeline:
    """An untrained transformer beside a trained VAE and T5 encoder.

    The VAE loses its shift: this pipeline class scales latents only.
    """
    torch.manual_seed(seed)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=LAYERS,
        cross_attention_dim=WIDTH,
        sample_size=SIZE,
        patch_size=PATCH,
        interpolation_scale=INTERPOLATION,
        caption_channels=T5_WIDTH,
    )
    _zero_gates(transformer)
    return PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=without_shift(vae),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(
            beta_schedule="linear", beta_start=1e-4, beta_end=0.02, prediction_type="v_prediction"
        ),
    )


def without_shift(vae: AutoencoderKL) -> AutoencoderKL:
    """The same weights, in a VAE whose config scales latents without shifting them."""
    copy = AutoencoderKL.from_config(vae.config, shift_factor=None)
    copy.load_state_dict(vae.state_dict())
    return copy.eval().requires_grad_(False)


def shift_of(vae: AutoencoderKL) -> float:
    """What to add to shifted and scaled latents to have latents that are scaled only."""
    return float(vae.config.shift_factor * vae.config.scaling_factor)


def _zero_gates(transformer: PixArtTransformer2DModel) -> None:
    """Every block starts as the identity (Peebles & Xie 2023; Chen et al. 2024 for attention to
    the prompt).
    """
    nn.init.zeros_(transformer.adaln_single.linear.weight)
    nn.init.zeros_(transformer.proj_out.weight)
    for block in transformer.transformer_blocks:
        with torch.no_grad():
            block.scale_shift_table.zero_()
        nn.init.zeros_(block.attn2.to_out[0].weight)


class PixArtRecipe(Recipe):
    """Velocity prediction, with timesteps uniform as the sampler's are."""

    name = "pixart"

    def __init__(self, pipeline: PixArtSigmaPipeline, source: StableDiffusion3Pipeline) -> None:
        super().__init__(pipeline)
        self._ids = lowered_ids(source.tokenizer_3, pipeline.tokenizer)
        self._empty = token_ids(pipeline.tokenizer, [""])
        self._shift = shift_of(source.vae)

    def noised(self, latents: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        kept = self.pipeline.scheduler.alphas_cumprod
        return diffused(latents + self._shift, kept, generator)

    def predicted(self, noisy: Tensor, time: Tensor, batch: Batch) -> Tensor:
        ids = torch.where(batch.dropped[:, None], self._empty, self._ids[batch.t5])
        mask = (ids != 0).long()
        with torch.no_grad():
            context = self.pipeline.text_encoder(ids, attention_mask=mask)[0]
        found: Tensor = self.denoiser(
            noisy,
            encoder_hidden_states=context,
            encoder_attention_mask=mask,
            timestep=time,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        return found
