"""Further video pipelines: transformers, and UNets with motion modules."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from diffusers import (
    AllegroPipeline,
    AllegroTransformer3DModel,
    AnimateDiffPipeline,
    AutoencoderKLAllegro,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLMochi,
    Cosmos2TextToImagePipeline,
    CosmosTransformer3DModel,
    DDIMScheduler,
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LattePipeline,
    LatteTransformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
    MotionAdapter,
    SkyReelsV2Pipeline,
    SkyReelsV2Transformer3DModel,
    TextToVideoSDPipeline,
    UNet3DConditionModel,
    WanImageToVideoPipeline,
    WanVACEPipeline,
    WanVACETransformer3DModel,
)
from diffusers.pipelines.skyreels_v2 import pipeline_skyreels_v2
from diffusers.pipelines.wan import pipeline_wan_i2v, pipeline_wan_vace
from torch import nn
from transformers import LlamaConfig, LlamaModel

from tests.tiny.common import (
    CLIP_WIDTH,
    LLM_WIDTH,
    SIZE,
    T5_WIDTH,
    clip_encoder,
    clip_tokenizer,
    llm_options,
    llm_tokenizer,
    prompts_and,
    t5_encoder,
    t5_tokenizer,
    tiny,
    vae,
)
from tests.tiny.unet import BLOCKS, ddim, unet
from tests.tiny.video import VIDEO, wan_parts, wan_transformer, wan_vae

HEADS: dict[str, Any] = {"attention_head_dim": 16, "num_attention_heads": 2}


@tiny("HunyuanVideoPipeline", **{**VIDEO, "max_sequence_length": 320})
def hunyuan_video() -> DiffusionPipeline:
    return HunyuanVideoPipeline(
        transformer=HunyuanVideoTransformer3DModel(
            **HEADS,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_single_layers=2,
            num_refiner_layers=2,
            text_embed_dim=LLM_WIDTH,
            pooled_projection_dim=CLIP_WIDTH,
            rope_axes_dim=(4, 4, 8),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        vae=AutoencoderKLHunyuanVideo(
            latent_channels=4,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=4,
        ),
        text_encoder=LlamaModel(LlamaConfig(**llm_options(num_hidden_layers=3))),
        tokenizer=llm_tokenizer(),
        text_encoder_2=clip_encoder(),
        tokenizer_2=clip_tokenizer(),
    )


@tiny("MochiPipeline", **{**VIDEO, "num_frames": 7, "height": 16, "width": 16})
def mochi() -> DiffusionPipeline:
    return MochiPipeline(
        transformer=MochiTransformer3DModel(
            **HEADS,
            num_layers=2,
            pooled_projection_dim=16,
            in_channels=12,
            text_embed_dim=T5_WIDTH,
            time_embed_dim=16,
            max_sequence_length=16,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=AutoencoderKLMochi(
            latent_channels=12,
            encoder_block_out_channels=(32, 32, 32, 32),
            decoder_block_out_channels=(32, 32, 32, 32),
            layers_per_block=(1, 1, 1, 1, 1),
        ),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
    )


@tiny("AllegroPipeline", **{**VIDEO, "num_frames": 8}, clean_caption=False)
def allegro() -> DiffusionPipeline:
    return AllegroPipeline(
        transformer=AllegroTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=24,
            num_layers=2,
            cross_attention_dim=48,
            caption_channels=T5_WIDTH,
            sample_height=4,
            sample_width=4,
            sample_frames=2,
        ),
        scheduler=DDIMScheduler(),
        vae=AutoencoderKLAllegro(
            block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=2
        ),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
    )


@tiny(
    "LattePipeline",
    height=SIZE,
    width=SIZE,
    video_length=2,
    guidance_scale=4.0,
    clean_caption=False,
)
def latte() -> DiffusionPipeline:
    return LattePipeline(
        transformer=LatteTransformer3DModel(
            **HEADS,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            patch_size=2,
            sample_size=8,
            cross_attention_dim=32,
            caption_channels=T5_WIDTH,
            attention_bias=True,
            activation_fn="gelu-approximate",
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            num_embeds_ada_norm=1000,
            video_length=2,
        ),
        scheduler=DDIMScheduler(),
        vae=vae(),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
    )


class Guardrail(nn.Module):
    """In the place of Cosmos's checker of prompts, which is a package of its own."""

    device = torch.device("cpu")
    dtype = torch.float32

    def check_text_safety(self, text: str) -> bool:
        return True


@tiny("Cosmos2TextToImagePipeline", height=32, width=32, guidance_scale=4.0, max_sequence_length=16)
def cosmos2() -> DiffusionPipeline:
    return Cosmos2TextToImagePipeline(
        transformer=CosmosTransformer3DModel(
            **HEADS,
            in_channels=16,
            num_layers=2,
            text_embed_dim=T5_WIDTH,
            adaln_lora_dim=4,
            max_size=(4, 32, 32),
            rope_scale=(1.0, 4.0, 4.0),
            extra_pos_embed_type=None,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        vae=wan_vae(),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
        safety_checker=Guardrail(),
    )


def without_ftfy(module: ModuleType) -> None:
    """Lets a pipeline that cleans prompts by ftfy run where that is not installed."""
    if not hasattr(module, "ftfy"):
        module.ftfy = SimpleNamespace(fix_text=str)  # type: ignore[attr-defined]


for module in (pipeline_skyreels_v2, pipeline_wan_i2v, pipeline_wan_vace):
    without_ftfy(module)


@tiny("SkyReelsV2Pipeline", **VIDEO)
def skyreels() -> DiffusionPipeline:
    transformer = SkyReelsV2Transformer3DModel(
        **HEADS, text_dim=T5_WIDTH, freq_dim=32, ffn_dim=64, num_layers=2, rope_max_seq_len=32
    )
    return SkyReelsV2Pipeline(**{**wan_parts(), "transformer": transformer})


@tiny("WanImageToVideoPipeline", each=prompts_and("image", size=32), **VIDEO, batches=False)
def wan_image_to_video() -> DiffusionPipeline:
    """Two experts that see the image beside the latents, as of Wan 2.2."""
    parts = {**wan_parts(), "transformer": wan_transformer(in_channels=36)}
    second = wan_transformer(in_channels=36)
    return WanImageToVideoPipeline(**parts, transformer_2=second, boundary_ratio=0.8)


@tiny("WanVACEPipeline", **VIDEO, batches=False)
def wan_vace() -> DiffusionPipeline:
    transformer = WanVACETransformer3DModel(
        **HEADS,
        text_dim=T5_WIDTH,
        freq_dim=32,
        ffn_dim=64,
        num_layers=2,
        rope_max_seq_len=32,
        vace_layers=[0, 1],
        vace_in_channels=96,
    )
    return WanVACEPipeline(**{**wan_parts(), "transformer": transformer})


MOTION: dict[str, Any] = {"height": SIZE, "width": SIZE, "num_frames": 2, "guidance_scale": 4.0}


@tiny("AnimateDiffPipeline", **MOTION)
def animate() -> DiffusionPipeline:
    return AnimateDiffPipeline(
        unet=unet(),
        motion_adapter=MotionAdapter(
            block_out_channels=(16, 32),
            motion_layers_per_block=2,
            motion_norm_num_groups=2,
            motion_num_attention_heads=2,
        ),
        scheduler=EulerAncestralDiscreteScheduler(beta_schedule="linear"),
        vae=vae(),
        text_encoder=clip_encoder(),
        tokenizer=clip_tokenizer(),
    )


@tiny("TextToVideoSDPipeline", **MOTION)
def text_to_video() -> DiffusionPipeline:
    unet_3d = UNet3DConditionModel(
        **{**BLOCKS, "down_block_types": ("DownBlock3D", "CrossAttnDownBlock3D")},
        up_block_types=("CrossAttnUpBlock3D", "UpBlock3D"),
        sample_size=8,
        cross_attention_dim=CLIP_WIDTH,
        attention_head_dim=16,
    )
    return TextToVideoSDPipeline(
        unet=unet_3d,
        scheduler=ddim(),
        vae=vae(),
        text_encoder=clip_encoder(),
        tokenizer=clip_tokenizer(),
    )
