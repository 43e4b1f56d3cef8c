"""Pipelines of other kinds: class labels, pixels, priors, sound, image embeddings."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderOobleck,
    DDIMScheduler,
    DDPMScheduler,
    DDPMWuerstchenScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    EDMDPMSolverMultistepScheduler,
    IFPipeline,
    KandinskyV22Pipeline,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableAudioDiTModel,
    StableAudioPipeline,
    StableAudioProjectionModel,
    StableCascadePriorPipeline,
    StableCascadeUNet,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionUpscalePipeline,
    UNet2DConditionModel,
    VQModel,
)

from tests.tiny.common import (
    CLIP_WIDTH,
    SIZE,
    T5_WIDTH,
    clip_encoder_with_projection,
    clip_tokenizer,
    prompts_and,
    t5_encoder,
    t5_tokenizer,
    tiny,
    vae,
)
from tests.tiny.unet import OFFSET, ddim, sd_parts, unet


@tiny(
    "DiTPipeline",
    each=lambda n: {"class_labels": list(range(n))},
    latent=False,
    guidance_scale=3.0,
)
def dit() -> DiffusionPipeline:
    return DiTPipeline(
        transformer=DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            sample_size=8,
            num_embeds_ada_norm=1000,
        ),
        vae=vae(),
        scheduler=DDIMScheduler(),
    )


def unet_of_pixels(**changes: Any) -> UNet2DConditionModel:
    options: dict[str, Any] = {
        "sample_size": SIZE,
        "in_channels": 3,
        "out_channels": 6,
        "cross_attention_dim": 32,
        "attention_head_dim": 16,
        "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "resnet_time_scale_shift": "scale_shift",
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 2,
        "encoder_hid_dim": T5_WIDTH,
    }
    return unet(**{**options, **changes})


@tiny("IFPipeline", latent=False, guidance_scale=4.0, height=SIZE, width=SIZE, clean_caption=False)
def deepfloyd() -> DiffusionPipeline:
    return IFPipeline(
        unet=unet_of_pixels(),
        scheduler=DDPMScheduler(variance_type="learned_range", thresholding=True),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )


def embeddings(n: int) -> dict[str, list[Any]]:
    """Image embeddings as the prior gives them, one row a sample."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn((2 * n, 1, 32), generator=generator)
    return {"image_embeds": [*rows[:n]], "negative_image_embeds": [*rows[n:]]}


@tiny(
    "KandinskyV22Pipeline",
    each=embeddings,
    height=SIZE,
    width=SIZE,
    guidance_scale=4.0,
)
def kandinsky() -> DiffusionPipeline:
    return KandinskyV22Pipeline(
        unet=unet_of_pixels(
            in_channels=4,
            out_channels=8,
            addition_embed_type="image",
            encoder_hid_dim_type="image_proj",
            encoder_hid_dim=32,
        ),
        scheduler=DDPMScheduler(variance_type="learned_range", clip_sample=True),
        movq=VQModel(
            block_out_channels=(32, 32),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_type="spatial",
            vq_embed_dim=4,
        ),
    )


@tiny("LatentConsistencyModelPipeline", height=SIZE, width=SIZE, guidance_scale=4.0)
def latent_consistency() -> DiffusionPipeline:
    scheduler = LCMScheduler(**OFFSET)
    return LatentConsistencyModelPipeline(**sd_parts(scheduler, unet=unet(time_cond_proj_dim=32)))


@tiny("StableDiffusionInstructPix2PixPipeline", each=prompts_and("image"), guidance_scale=4.0)
def pix2pix() -> DiffusionPipeline:
    return StableDiffusionInstructPix2PixPipeline(**sd_parts(ddim(), unet=unet(in_channels=8)))


@tiny("StableDiffusionUpscalePipeline", each=prompts_and("image"), guidance_scale=4.0)
def upscale() -> DiffusionPipeline:
    parts = sd_parts(
        ddim(), unet=unet(in_channels=7, num_class_embeds=1000), vae=vae(scaling_factor=0.08333)
    )
    del parts["requires_safety_checker"]
    return StableDiffusionUpscalePipeline(**parts, low_res_scheduler=DDPMScheduler())


@tiny("StableCascadePriorPipeline", height=128, width=128, guidance_scale=4.0, latent=False)
def cascade() -> DiffusionPipeline:
    return StableCascadePriorPipeline(
        prior=StableCascadeUNet(
            in_channels=4,
            out_channels=4,
            timestep_ratio_embedding_dim=16,
            conditioning_dim=32,
            block_out_channels=(32, 32),
            num_attention_heads=(2, 2),
            down_num_layers_per_block=(2, 2),
            up_num_layers_per_block=(2, 2),
            clip_image_in_channels=CLIP_WIDTH,
            clip_text_in_channels=CLIP_WIDTH,
            clip_text_pooled_in_channels=CLIP_WIDTH,
            dropout=(0.0, 0.0),
            switch_level=(False,),
        ),
        scheduler=DDPMWuerstchenScheduler(),
        text_encoder=clip_encoder_with_projection(),
        tokenizer=clip_tokenizer(),
        resolution_multiple=32,
    )


@tiny("StableAudioPipeline", audio_end_in_s=0.3, guidance_scale=4.0)
def stable_audio() -> DiffusionPipeline:
    return StableAudioPipeline(
        transformer=StableAudioDiTModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            num_key_value_attention_heads=1,
            cross_attention_dim=32,
            time_proj_dim=16,
            global_states_input_dim=2 * T5_WIDTH,
            cross_attention_input_dim=T5_WIDTH,
        ),
        scheduler=EDMDPMSolverMultistepScheduler(sigma_data=1.0, sigma_max=500),
        vae=AutoencoderOobleck(
            encoder_hidden_size=8,
            downsampling_ratios=[2, 4],
            channel_multiples=[1, 2],
            decoder_channels=8,
            decoder_input_channels=4,
            sampling_rate=60,
        ),
        projection_model=StableAudioProjectionModel(
            text_encoder_dim=T5_WIDTH, conditioning_dim=T5_WIDTH, min_value=0, max_value=32
        ),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
    )
