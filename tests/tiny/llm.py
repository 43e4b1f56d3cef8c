"""Image transformers that condition on large language models."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AutoencoderDC,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import (
    Gemma2Config,
    Gemma2Model,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)

from tests.tiny.common import LLM_WIDTH, SIZE, flow_vae, llm_options, llm_tokenizer, tiny

SQUARE: dict[str, Any] = {"height": SIZE, "width": SIZE}


def qwen_vl() -> Qwen2_5_VLForConditionalGeneration:
    text = llm_options(rope_parameters={"rope_type": "default", "mrope_section": [2, 3, 3]})
    del text["head_dim"]  # hidden size over heads
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": LLM_WIDTH,
    }
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    )


@tiny(
    "QwenImagePipeline",
    height=32,
    width=32,
    true_cfg_scale=3.0,
    negative_prompt=" ",
    max_sequence_length=320,
)
def qwen_image() -> DiffusionPipeline:
    return QwenImagePipeline(
        transformer=QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=LLM_WIDTH,
            axes_dims_rope=(4, 6, 6),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=AutoencoderKLQwenImage(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 2, 4],
            num_res_blocks=1,
            temperal_downsample=[False, True],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ),
        text_encoder=qwen_vl(),
        tokenizer=llm_tokenizer(),
    )


@tiny("ZImagePipeline", **SQUARE, guidance_scale=3.0, max_sequence_length=64)
def z_image() -> DiffusionPipeline:
    return ZImagePipeline(
        transformer=ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=2,
            n_refiner_layers=2,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=LLM_WIDTH,
            axes_dims=[8, 4, 4],
            axes_lens=[256, 32, 32],
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=flow_vae(),
        text_encoder=Qwen3Model(Qwen3Config(**llm_options())),
        tokenizer=llm_tokenizer(),
    )


def flux2_parts(*, guidance: bool, layers: int) -> dict[str, Any]:
    """`layers`: of how many of the encoder's layers the states are joined."""
    return {
        "transformer": Flux2Transformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=layers * LLM_WIDTH,
            timestep_guidance_channels=32,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=guidance,
        ),
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": AutoencoderKLFlux2(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
        ),
        "tokenizer": llm_tokenizer(),
    }


FLUX2: dict[str, Any] = {**SQUARE, "max_sequence_length": 320, "text_encoder_out_layers": (1, 2)}


@tiny("Flux2KleinPipeline", **FLUX2, guidance_scale=3.0)
def flux2_klein() -> DiffusionPipeline:
    encoder = Qwen3ForCausalLM(Qwen3Config(**llm_options()))
    return Flux2KleinPipeline(text_encoder=encoder, **flux2_parts(guidance=False, layers=2))


@tiny("Flux2Pipeline", **FLUX2, guidance_scale=3.0)
def flux2() -> DiffusionPipeline:
    vision = {
        "model_type": "pixtral",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 32,
        "patch_size": 8,
    }
    text = {"model_type": "mistral", **llm_options(sliding_window=None)}
    config = Mistral3Config(text_config=text, vision_config=vision)
    encoder = Mistral3ForConditionalGeneration(config)
    return Flux2Pipeline(text_encoder=encoder, **flux2_parts(guidance=True, layers=2))


def gemma() -> Gemma2Model:
    return Gemma2Model(Gemma2Config(**llm_options()))


SANA: dict[str, Any] = {
    "height": 32,
    "width": 32,
    "guidance_scale": 4.0,
    "max_sequence_length": 16,
    "use_resolution_binning": False,
    "clean_caption": False,
    "complex_human_instruction": None,
}


def sana_parts(*, guidance_embeds: bool = False) -> dict[str, Any]:
    return {
        "transformer": SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=16,
            num_cross_attention_heads=2,
            cross_attention_head_dim=16,
            cross_attention_dim=32,
            caption_channels=LLM_WIDTH,
            sample_size=16,
            guidance_embeds=guidance_embeds,
            qk_norm="rms_norm_across_heads" if guidance_embeds else None,
        ),
        "scheduler": DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        "vae": AutoencoderDC(
            latent_channels=4,
            attention_head_dim=4,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
            downsample_block_type="conv",
            upsample_block_type="interpolate",
        ),
        "text_encoder": gemma(),
        "tokenizer": llm_tokenizer(),
    }


@tiny("SanaPipeline", **SANA)
def sana() -> DiffusionPipeline:
    return SanaPipeline(**sana_parts())


@tiny("Lumina2Pipeline", **SQUARE, guidance_scale=4.0, max_sequence_length=320)
def lumina2() -> DiffusionPipeline:
    return Lumina2Pipeline(
        transformer=Lumina2Transformer2DModel(
            sample_size=8,
            in_channels=4,
            hidden_size=32,
            num_layers=2,
            num_refiner_layers=2,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=(8, 4, 4),
            axes_lens=(600, 32, 32),
            cap_feat_dim=LLM_WIDTH,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=flow_vae(),
        text_encoder=gemma(),
        tokenizer=llm_tokenizer(),
    )
