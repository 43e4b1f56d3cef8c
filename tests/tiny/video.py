"""Video transformers."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import UMT5Config, UMT5EncoderModel

from tests.tiny.common import T5_WIDTH, t5_config, t5_encoder, t5_tokenizer, tiny

VIDEO: dict[str, Any] = {
    "height": 32,
    "width": 32,
    "num_frames": 5,
    "guidance_scale": 4.0,
    "max_sequence_length": 16,
}


def wan_vae() -> AutoencoderKLWan:
    return AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)


def wan_transformer(**changes: Any) -> WanTransformer3DModel:
    options: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "text_dim": T5_WIDTH,
        "freq_dim": 32,
        "ffn_dim": 64,
        "num_layers": 2,
        "rope_max_seq_len": 32,
    }
    return WanTransformer3DModel(**{**options, **changes})


def wan_parts() -> dict[str, Any]:
    """Wan conditions on UMT5; its tokenizer here is T5's."""
    return {
        "transformer": wan_transformer(),
        "scheduler": UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        "vae": wan_vae(),
        "text_encoder": UMT5EncoderModel(UMT5Config(**t5_config().to_diff_dict())),
        "tokenizer": t5_tokenizer(),
    }


@tiny("WanPipeline", **VIDEO)
def wan() -> DiffusionPipeline:
    return WanPipeline(**wan_parts())


@tiny("WanPipeline-two-experts", **VIDEO, guidance_scale_2=3.0)
def wan_two_experts() -> DiffusionPipeline:
    return WanPipeline(**wan_parts(), transformer_2=wan_transformer(), boundary_ratio=0.8)


@tiny("LTXPipeline", **{**VIDEO, "num_frames": 9})
def ltx() -> DiffusionPipeline:
    return LTXPipeline(
        transformer=LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            num_attention_heads=2,
            attention_head_dim=16,
            cross_attention_dim=32,
            num_layers=2,
            caption_channels=T5_WIDTH,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=AutoencoderKLLTXVideo(
            latent_channels=8,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1),
            spatio_temporal_scaling=(True, True, False, False),
            decoder_spatio_temporal_scaling=(True, True, False, False),
            patch_size=1,
        ),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
    )


def cogvideox_parts(scheduler: Any) -> dict[str, Any]:
    return {
        "transformer": CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            time_embed_dim=16,
            text_embed_dim=T5_WIDTH,
            num_layers=2,
            sample_width=4,
            sample_height=4,
            sample_frames=5,
            max_text_seq_length=16,
        ),
        "scheduler": scheduler,
        "vae": AutoencoderKLCogVideoX(
            block_out_channels=(8, 8, 8, 8),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
        ),
        "text_encoder": t5_encoder(),
        "tokenizer": t5_tokenizer(),
    }


@tiny("CogVideoXPipeline", **VIDEO)
def cogvideox() -> DiffusionPipeline:
    return CogVideoXPipeline(**cogvideox_parts(DDIMScheduler()))


@tiny("CogVideoXPipeline-DPM", **VIDEO, use_dynamic_cfg=True)
def cogvideox_dpm() -> DiffusionPipeline:
    return CogVideoXPipeline(**cogvideox_parts(CogVideoXDPMScheduler()))
