"""The embedded Stable Diffusion 3: a 3.5 M parameter MMDiT with CLIP and T5 encoders on Scenes.

Trained by flow matching (Esser et al. 2024, "Scaling Rectified Flow Transformers for
High-Resolution Image Synthesis", eq. 12), with noise levels uniform over the sampler's own steps.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from safetensors.torch import load_file
from torch import Tensor

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.zoo.denoising import SHIFT, Batch, Recipe, zero_gates
from tmpdiff_bench.zoo.latents import LATENT_CHANNELS, token_ids
from tmpdiff_bench.zoo.text import (
    CLIP_WIDTH,
    MAX_TOKENS,
    T5_WIDTH,
    build_clip_encoder,
    build_t5_encoder,
    corpus,
    train_clip_tokenizer,
    train_t5_tokenizer,
)

WIDTH, HEADS, LAYERS = 128, 4, 6
GRID, PATCH = 8, 2  # tokens a side, latent pixels a token's side
# `StableDiffusion3Pipeline.__call__` pads T5 to 256 tokens unless told otherwise; a share of the
# batches sees that padding, so that the model also works for a caller who does not know ours.
PIPELINE_T5_LENGTH = 256
LONG_SHARE = 0.03


def build_pipeline(vae: AutoencoderKL, *, seed: int) -> StableDiffusion3Pipeline:
    """An untrained pipeline around a trained VAE."""
    torch.manual_seed(seed)
    texts = corpus()
    clip, t5 = train_clip_tokenizer(texts), train_t5_tokenizer(texts)
    transformer = SD3Transformer2DModel(
        sample_size=GRID * PATCH,
        patch_size=PATCH,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=LAYERS,
        attention_head_dim=WIDTH // HEADS,
        num_attention_heads=HEADS,
        joint_attention_dim=T5_WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=2 * CLIP_WIDTH,
        pos_embed_max_size=GRID,
    )
    blocks = transformer.transformer_blocks
    zero_gates([norm for b in blocks for norm in (b.norm1, b.norm1_context)], transformer)
    transformer.pos_embed.pos_embed.copy_(position_codes())
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=vae,
        text_encoder=build_clip_encoder(clip),
        tokenizer=clip,
        text_encoder_2=build_clip_encoder(clip),
        tokenizer_2=clip,
        text_encoder_3=build_t5_encoder(t5),
        tokenizer_3=t5,
    )


def take_weights(pipeline: StableDiffusion3Pipeline, folder: Path) -> None:
    """Copy the transformer of a saved embedded pipeline; position codes stay.

    Text encoders do not come along: what they have learnt to ignore, they never learn again.

    Raises:
        UsageError: `folder` holds no pipeline, or one of another shape.
    """
    codes = {"pos_embed.pos_embed": pipeline.transformer.pos_embed.pos_embed}
    try:
        [path] = (folder / "transformer").glob("*.safetensors")
        pipeline.transformer.load_state_dict({**load_file(path), **codes})
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"{folder} holds no embedded sd3: its transformer does not fit") from error


def position_codes() -> Tensor:
    """Sines and cosines (1, 64, 128) of row and column with wavelengths of 2.5 to 32 tokens.

    The class's own codes are made for 64 tokens a side: on 8, neighbours differ by 0.5 % in
    direction. They are a buffer of the checkpoint, so that ours load like any others.
    """
    wavelengths = torch.logspace(math.log10(2.5), math.log10(32), WIDTH // 4)
    angles = torch.arange(GRID)[:, None] * 2 * math.pi / wavelengths
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    codes = torch.cat([axis[rows.flatten()], axis[columns.flatten()]], dim=1)
    return codes.bfloat16().float()[None]


class Sd3Recipe(Recipe):
    """Flow matching of transformer and text encoders together."""

    name = "sd3"
    trained = ("transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
    # Text encoders that were trained on all captions from the start told places apart by 4 %
    # (colours by 50 %), and 400 iterations on placed captions did not change that; fresh ones
    # placed 9 of 9 after 250.
    placed_iterations = 500

    def __init__(self, pipeline: StableDiffusion3Pipeline) -> None:
        super().__init__(pipeline)
        self._empty = (token_ids(pipeline.tokenizer, [""]), token_ids(pipeline.tokenizer_3, [""]))

    def is_hidden_matrix(self, parameter: str, value: Tensor) -> bool:
        return value.ndim == 2 and (".transformer_blocks." in parameter or ".layers." in parameter)

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        clip = torch.where(batch.dropped[:, None], self._empty[0], batch.clip)
        t5 = torch.where(batch.dropped[:, None], self._empty[1], batch.t5)
        if float(torch.rand((), generator=generator)) < LONG_SHARE:
            t5 = F.pad(t5, (0, PIPELINE_T5_LENGTH - MAX_TOKENS), value=0)
        return super().loss(replace(batch, clip=clip, t5=t5), generator)

    def predicted(self, noisy: Tensor, time: Tensor, batch: Batch) -> Tensor:
        context, pooled = encode_tokens(self.pipeline, batch.clip, batch.t5)
        found: Tensor = self.denoiser(noisy, context, pooled, time * 1000, return_dict=False)[0]
        return found


def encode_tokens(
    pipe: StableDiffusion3Pipeline, clip: Tensor, t5: Tensor
) -> tuple[Tensor, Tensor]:
    """What `pipe.encode_prompt` computes, from token ids: context (n, 24 + t5 length, 128), pooled
    (n, 128).
    """
    first = pipe.text_encoder(clip, output_hidden_states=True)
    second = pipe.text_encoder_2(clip, output_hidden_states=True)
    hidden = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
    long = pipe.text_encoder_3(t5)[0]
    hidden = F.pad(hidden, (0, long.shape[-1] - hidden.shape[-1]))
    pooled = torch.cat([first.text_embeds, second.text_embeds], dim=-1)
    return torch.cat([hidden, long], dim=-2), pooled
