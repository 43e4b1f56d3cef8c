"""The embedded FLUX.1: a 2.2 M parameter transformer of two-stream and one-stream blocks on Scenes.

Prompts come as T5 tokens and one pooled CLIP vector, places only as rotary codes. Trained by flow
matching.
"""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from tmpdiff_bench.zoo.denoising import SHIFT, Batch, Recipe, zero_gates
from tmpdiff_bench.zoo.latents import LATENT_CHANNELS, token_ids
from tmpdiff_bench.zoo.text import CLIP_WIDTH, MAX_TOKENS, T5_WIDTH, lowered_ids

WIDTH, HEADS = 128, 4
DOUBLE_LAYERS, SINGLE_LAYERS = 2, 4  # FLUX.1 has one to two as well
ROTARY = (4, 14, 14)  # of a head's 32 dimensions: unused axis, row, column


def build_pipeline(
    source: StableDiffusion3Pipeline,
    vae: AutoencoderKL,
    tokenizer: T5TokenizerFast,
    encoder: T5EncoderModel,
    *,
    seed: int,
) -> FluxPipeline:
    """An untrained transformer beside a trained VAE, sd3's first CLIP encoder and the T5 encoder.

    `tokenizer` is that of lower-cased captions which `encoder` knows; the pipeline gets sd3's,
    which knows capitals.
    """
    torch.manual_seed(seed)
    transformer = FluxTransformer2DModel(
        in_channels=4 * LATENT_CHANNELS,
        num_layers=DOUBLE_LAYERS,
        num_single_layers=SINGLE_LAYERS,
        attention_head_dim=WIDTH // HEADS,
        num_attention_heads=HEADS,
        joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=CLIP_WIDTH,
        guidance_embeds=False,
        axes_dims_rope=ROTARY,
    )
    blocks = transformer.transformer_blocks
    norms = [norm for block in blocks for norm in (block.norm1, block.norm1_context)]
    zero_gates([*norms, *(b.norm for b in transformer.single_transformer_blocks)], transformer)
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=vae,
        text_encoder=without_projection(source.text_encoder),
        tokenizer=source.tokenizer,
        text_encoder_2=with_capitals(encoder, lowered_ids(source.tokenizer_3, tokenizer)),
        tokenizer_2=source.tokenizer_3,
        transformer=transformer,
    )


def without_projection(encoder: CLIPTextModelWithProjection) -> CLIPTextModel:
    """The same CLIP encoder as the class that leaves out the last projection."""
    found = CLIPTextModel(encoder.config)
    weights = encoder.state_dict()
    del weights["text_projection.weight"]
    if "text_model.embeddings.token_embedding.weight" not in found.state_dict():
        weights = {name.removeprefix("text_model."): value for name, value in weights.items()}
    found.load_state_dict(weights)
    return found.eval().requires_grad_(False)


def with_capitals(encoder: T5EncoderModel, lowered: Tensor) -> T5EncoderModel:
    """The same T5 encoder for a tokenizer whose ids `lowered` maps to those that it knows."""
    config = T5Config.from_dict({**encoder.config.to_dict(), "vocab_size": len(lowered)})
    found = T5EncoderModel(config)
    weights = encoder.state_dict()
    for name, value in weights.items():
        if value.shape[0] == encoder.config.vocab_size:
            weights[name] = value[lowered]
    found.load_state_dict(weights)
    return found.eval().requires_grad_(False)


class FluxRecipe(Recipe):
    """Flow matching of the transformer alone."""

    name = "flux"

    def __init__(self, pipeline: FluxPipeline) -> None:
        super().__init__(pipeline)
        self._empty = (token_ids(pipeline.tokenizer, [""]), token_ids(pipeline.tokenizer_2, [""]))

    def predicted(self, noisy: Tensor, time: Tensor, batch: Batch) -> Tensor:
        clip = torch.where(batch.dropped[:, None], self._empty[0], batch.clip)
        t5 = torch.where(batch.dropped[:, None], self._empty[1], batch.t5)
        pipe, (n, channels, height, width) = self.pipeline, noisy.shape
        with torch.no_grad():
            pooled = pipe.text_encoder(clip).pooler_output
            context = pipe.text_encoder_2(t5)[0]
        found = self.denoiser(
            hidden_states=pipe._pack_latents(noisy, n, channels, height, width),
            encoder_hidden_states=context,
            pooled_projections=pooled,
            timestep=time,
            img_ids=pipe._prepare_latent_image_ids(
                n, height // 2, width // 2, noisy.device, noisy.dtype
            ),
            txt_ids=torch.zeros(MAX_TOKENS, 3),
            return_dict=False,
        )[0]
        unpacked: Tensor = pipe._unpack_latents(found, height, width, vae_scale_factor=1)
        return unpacked
