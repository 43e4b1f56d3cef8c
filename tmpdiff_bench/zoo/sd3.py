"""The embedded Stable Diffusion 3: a 3.5 M parameter MMDiT with CLIP and T5 encoders on Scenes.

Trained by flow matching (Esser et al. 2024, "Scaling Rectified Flow Transformers for
High-Resolution Image Synthesis", eq. 12), with noise levels uniform over the sampler's own steps.
"""

from __future__ import annotations

import math
import shutil
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
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.zoo.latents import LatentSet, token_ids
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
from tmpdiff_bench.zoo.vae import LATENT_CHANNELS

WIDTH, HEADS, LAYERS = 128, 4, 6
PROMPT_DROPOUT = 0.1
_TRAINED = ("transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
GRID, PATCH = 8, 2  # tokens a side, latent pixels a token's side
# Of the noise levels, in training as in sampling (Esser et al. 2024, eq. 23), and with uniform
# times: logit-normal levels are above 0.93 once in 200 draws, and layout is settled early.
SHIFT = 3.0
# `StableDiffusion3Pipeline.__call__` pads T5 to 256 tokens unless told otherwise; a share of the
# batches sees that padding, so that the model also works for a caller who does not know ours.
PIPELINE_T5_LENGTH = 256
LONG_SHARE = 0.03
# The first iterations see only single objects with their places. Text encoders that were trained on
# all captions from the start told places apart by 4 % (colours by 50 %), and 400 iterations on
# such captions did not change that; fresh ones placed 9 of 9 after 250.
PLACED_ITERATIONS = 500


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
    _zero_gates(transformer)
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


def _zero_gates(transformer: SD3Transformer2DModel) -> None:
    """adaLN-zero: every block starts as the identity (Peebles & Xie 2023)."""
    for block in transformer.transformer_blocks:
        for norm in (block.norm1, block.norm1_context):
            nn.init.zeros_(norm.linear.weight)
            nn.init.zeros_(norm.linear.bias)
    nn.init.zeros_(transformer.norm_out.linear.weight)
    nn.init.zeros_(transformer.proj_out.weight)


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


class Sd3Part:
    """Trains transformer and text encoders of a pipeline together."""

    name = "sd3"

    def __init__(
        self,
        pipeline: StableDiffusion3Pipeline,
        training: LatentSet,
        validation: LatentSet,
        *,
        batch: int = 64,
    ) -> None:
        self.pipeline = pipeline
        self.modules = nn.ModuleDict({name: getattr(pipeline, name) for name in _TRAINED})
        self._training, self._validation, self._batch = training, validation, batch
        self._placed = training.placed.nonzero()
        self._empty = (token_ids(pipeline.tokenizer, [""]), token_ids(pipeline.tokenizer_3, [""]))
        if shutil.which("c++"):  # 1.25x faster iterations; without a compiler all works as well
            pipeline.transformer.compile(dynamic=False)

    def is_hidden_matrix(self, parameter: str) -> bool:
        value = self.modules.get_parameter(parameter)
        return value.ndim == 2 and (".transformer_blocks." in parameter or ".layers." in parameter)

    def loss(self, iteration: int, generator: torch.Generator) -> Tensor:
        data, n = self._training, self._batch
        if iteration < PLACED_ITERATIONS:
            chosen = self._placed[torch.randint(len(self._placed), (n,), generator=generator)]
            rows, which = chosen.unbind(1)
        else:
            rows = torch.randint(len(data), (n,), generator=generator)
            which = torch.randint(data.clip.shape[1], (n,), generator=generator)
        clip, t5 = data.clip[rows, which], data.t5[rows, which]
        dropped = torch.rand(n, generator=generator) < PROMPT_DROPOUT
        clip = torch.where(dropped[:, None], self._empty[0], clip)
        t5 = torch.where(dropped[:, None], self._empty[1], t5)
        if float(torch.rand((), generator=generator)) < LONG_SHARE:
            t5 = F.pad(t5, (0, PIPELINE_T5_LENGTH - MAX_TOKENS), value=0)
        return self._flow_loss(data.latents[rows].float(), clip, t5, generator)

    def evaluate(self) -> dict[str, float]:
        data, generator = self._validation, torch.Generator().manual_seed(1)
        losses = []
        with torch.compiler.set_stance("force_eager"):
            for start in range(0, len(data), self._batch):
                rows = slice(start, start + self._batch)
                losses.append(
                    self._flow_loss(
                        data.latents[rows].float(), data.clip[rows, 0], data.t5[rows, 0], generator
                    )
                )
        return {"validation_loss": float(torch.stack(losses).mean())}

    def _flow_loss(
        self, latents: Tensor, clip: Tensor, t5: Tensor, generator: torch.Generator
    ) -> Tensor:
        time = torch.rand(len(latents), generator=generator)
        sigma = SHIFT * time / (1 + (SHIFT - 1) * time)
        noise = torch.randn(latents.shape, generator=generator)
        mixed = torch.lerp(latents, noise, sigma[:, None, None, None])
        # the fused attention kernel for CPUs is slow backwards at these lengths
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            context, pooled = encode_tokens(self.pipeline, clip, t5)
            velocity = self.pipeline.transformer(
                mixed, context, pooled, sigma * 1000, return_dict=False
            )[0]
        return F.mse_loss(velocity.float(), noise - latents)


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
