"""The embedded Stable Diffusion XL: a small convolutional UNet with two CLIP encoders on Scenes.

Trained on velocities, sampled by Euler steps in the noise level sigma.
"""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn

from tmpdiff_bench.zoo.denoising import Batch, Recipe, diffused
from tmpdiff_bench.zoo.flux import without_projection
from tmpdiff_bench.zoo.latents import LATENT_CHANNELS
from tmpdiff_bench.zoo.pixart import shift_of, without_shift
from tmpdiff_bench.zoo.text import CLIP_WIDTH

CHANNELS = (64, 128)
SIZE, PIXELS = 16, 64
TIME_WIDTH = 8  # of each of the six sizes that the UNet is told


def build_pipeline(
    source: StableDiffusion3Pipeline, vae: AutoencoderKL, *, seed: int
) -> StableDiffusionXLPipeline:
    """An untrained UNet beside a trained VAE and sd3's CLIP encoders.

    The VAE loses its shift: this pipeline class scales latents only.
    """
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=CHANNELS,
        layers_per_block=1,
        transformer_layers_per_block=(1, 1),
        attention_head_dim=(2, 4),  # the class takes numbers of heads under this name
        cross_attention_dim=2 * CLIP_WIDTH,
        norm_num_groups=16,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_WIDTH,
        projection_class_embeddings_input_dim=6 * TIME_WIDTH + CLIP_WIDTH,
    )
    _zero_ends(unet)
    return StableDiffusionXLPipeline(
        vae=without_shift(vae),
        text_encoder=without_projection(source.text_encoder),
        text_encoder_2=source.text_encoder_2,
        tokenizer=source.tokenizer,
        tokenizer_2=source.tokenizer_2,
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            beta_schedule="linear",
            beta_start=1e-4,
            beta_end=0.02,
            prediction_type="v_prediction",
            timestep_spacing="linspace",
        ),
        add_watermarker=False,
    )


def _zero_ends(unet: UNet2DConditionModel) -> None:
    """Residual branches start at nothing (Goyal et al. 2017)."""
    nn.init.zeros_(unet.conv_out.weight)
    for name, module in unet.named_modules():
        if name.endswith((".conv2", ".proj_out", "attn1.to_out.0", "attn2.to_out.0")):
            nn.init.zeros_(module.weight)


class SdxlRecipe(Recipe):
    """Velocity prediction, with timesteps uniform as the sampler's are."""

    name = "sdxl"
    trained = ("unet",)

    def __init__(
        self, pipeline: StableDiffusionXLPipeline, source: StableDiffusion3Pipeline
    ) -> None:
        super().__init__(pipeline)
        self._shift = shift_of(source.vae)
        self._sizes = torch.tensor([[PIXELS, PIXELS, 0, 0, PIXELS, PIXELS]], dtype=torch.float32)

    def noised(self, latents: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        kept = self.pipeline.scheduler.alphas_cumprod
        return diffused(latents + self._shift, kept, generator)

    def predicted(self, noisy: Tensor, time: Tensor, batch: Batch) -> Tensor:
        with torch.no_grad():
            first = self.pipeline.text_encoder(batch.clip, output_hidden_states=True)
            second = self.pipeline.text_encoder_2(batch.clip, output_hidden_states=True)
            context = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
            # without a prompt the pipeline gives zeros
            context = context.masked_fill(batch.dropped[:, None, None], 0.0)
            pooled = second.text_embeds.masked_fill(batch.dropped[:, None], 0.0)
        sizes = self._sizes.expand(len(noisy), -1)
        found: Tensor = self.denoiser(
            noisy,
            time,
            encoder_hidden_states=context,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes},
            return_dict=False,
        )[0]
        return found
