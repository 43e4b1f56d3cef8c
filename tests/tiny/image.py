"""Further image transformers."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    BriaPipeline,
    BriaTransformer2DModel,
    CogVideoXDDIMScheduler,
    CogView3PlusPipeline,
    CogView3PlusTransformer2DModel,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    DDPMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    LuminaNextDiT2DModel,
    LuminaPipeline,
    OmniGenPipeline,
    OmniGenTransformer2DModel,
    OvisImagePipeline,
    OvisImageTransformer2DModel,
    SanaSprintPipeline,
    SCMScheduler,
)
from transformers import (
    BertConfig,
    BertModel,
    GlmConfig,
    GlmModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3Model,
)

from tests.tiny.common import (
    CLIP_WIDTH,
    LLM_WIDTH,
    SIZE,
    T5_WIDTH,
    clip_encoder_with_projection,
    clip_tokenizer,
    flow_vae,
    llm_options,
    llm_tokenizer,
    t5_encoder,
    t5_tokenizer,
    tiny,
    vae,
)
from tests.tiny.llm import SANA, gemma, sana_parts

SQUARE: dict[str, Any] = {"height": SIZE, "width": SIZE, "guidance_scale": 4.0}
HEADS: dict[str, Any] = {"attention_head_dim": 16, "num_attention_heads": 2}


def t5_parts() -> dict[str, Any]:
    """What surrounds a transformer that conditions on T5 alone."""
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "vae": flow_vae(),
        "text_encoder": t5_encoder(),
        "tokenizer": t5_tokenizer(),
    }


@tiny("AuraFlowPipeline", **SQUARE, max_sequence_length=16)
def aura_flow() -> DiffusionPipeline:
    transformer = AuraFlowTransformer2DModel(
        **HEADS,
        sample_size=8,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        joint_attention_dim=T5_WIDTH,
        caption_projection_dim=32,
        pos_embed_max_size=64,
    )
    return AuraFlowPipeline(transformer=transformer, **t5_parts())


@tiny("BriaPipeline", **SQUARE, max_sequence_length=16)
def bria() -> DiffusionPipeline:
    transformer = BriaTransformer2DModel(
        **HEADS,
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        joint_attention_dim=T5_WIDTH,
        axes_dims_rope=[4, 4, 8],
    )
    return BriaPipeline(transformer=transformer, **t5_parts())


def cogview_options() -> dict[str, Any]:
    return {
        **HEADS,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "time_embed_dim": 32,
        "condition_dim": 8,
        "pos_embed_max_size": 16,
        "sample_size": 8,
    }


@tiny("CogView3PlusPipeline", **SQUARE, max_sequence_length=16)
def cogview3() -> DiffusionPipeline:
    transformer = CogView3PlusTransformer2DModel(**cogview_options(), text_embed_dim=T5_WIDTH)
    scheduler = CogVideoXDDIMScheduler(prediction_type="v_prediction")
    return CogView3PlusPipeline(
        transformer=transformer, **{**t5_parts(), "scheduler": scheduler, "vae": vae()}
    )


@tiny("CogView4Pipeline", **SQUARE, max_sequence_length=32)
def cogview4() -> DiffusionPipeline:
    return CogView4Pipeline(
        transformer=CogView4Transformer2DModel(
            **cogview_options(), text_embed_dim=LLM_WIDTH, rope_axes_dim=(16, 16)
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae(),
        text_encoder=GlmModel(GlmConfig(**llm_options())),
        tokenizer=llm_tokenizer(),
    )


@tiny("HunyuanDiTPipeline", **SQUARE, use_resolution_binning=False)
def hunyuan_dit() -> DiffusionPipeline:
    bert = BertConfig(
        vocab_size=len(llm_tokenizer()),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    return HunyuanDiTPipeline(
        transformer=HunyuanDiT2DModel(
            **HEADS,
            in_channels=4,
            patch_size=2,
            sample_size=8,
            hidden_size=32,
            num_layers=4,
            mlp_ratio=2.0,
            cross_attention_dim=32,
            cross_attention_dim_t5=T5_WIDTH,
            pooled_projection_dim=16,
        ),
        scheduler=DDPMScheduler(prediction_type="v_prediction"),
        vae=vae(),
        text_encoder=BertModel(bert),
        tokenizer=llm_tokenizer(),
        text_encoder_2=t5_encoder(),
        tokenizer_2=t5_tokenizer(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@tiny("LuminaPipeline", **SQUARE, max_sequence_length=16, clean_caption=False)
def lumina() -> DiffusionPipeline:
    return LuminaPipeline(
        transformer=LuminaNextDiT2DModel(
            sample_size=8,
            hidden_size=32,
            num_layers=2,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            cross_attention_dim=LLM_WIDTH,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(),
        text_encoder=gemma(),
        tokenizer=llm_tokenizer(),
    )


@tiny("OvisImagePipeline", **SQUARE, max_sequence_length=256)
def ovis() -> DiffusionPipeline:
    return OvisImagePipeline(
        transformer=OvisImageTransformer2DModel(
            **HEADS,
            in_channels=16,
            out_channels=16,
            num_layers=2,
            num_single_layers=2,
            joint_attention_dim=LLM_WIDTH,
            axes_dims_rope=(4, 4, 8),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=flow_vae(),
        text_encoder=Qwen3Model(Qwen3Config(**llm_options())),
        tokenizer=llm_tokenizer(),
    )


@tiny("OmniGenPipeline", **{**SQUARE, "height": 32, "width": 32})  # an eighth, by its tokens
def omnigen() -> DiffusionPipeline:
    return OmniGenPipeline(
        transformer=OmniGenTransformer2DModel(
            hidden_size=32,
            num_attention_heads=2,
            num_key_value_heads=2,
            intermediate_size=64,
            num_layers=2,
            pad_token_id=0,
            vocab_size=len(llm_tokenizer()),
            max_position_embeddings=512,
            original_max_position_embeddings=512,
            pos_embed_max_size=16,
            time_step_dim=32,
            rope_scaling={"long_factor": [1.0] * 8, "short_factor": [1.0] * 8},
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True, num_train_timesteps=1),
        vae=vae(block_out_channels=(8,) * 4),
        tokenizer=llm_tokenizer(),
    )


@tiny("HiDreamImagePipeline", **SQUARE, max_sequence_length=16)
def hidream() -> DiffusionPipeline:
    llama = LlamaConfig(**llm_options())
    pipeline = HiDreamImagePipeline(
        transformer=HiDreamImageTransformer2DModel(
            **HEADS,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_single_layers=2,
            caption_channels=[T5_WIDTH, LLM_WIDTH],
            text_emb_dim=2 * CLIP_WIDTH,
            axes_dims_rope=(4, 4, 8),
            max_resolution=(16, 16),
            llama_layers=[0, 1, 0, 1],  # one a block
            force_inference_output=True,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=flow_vae(),
        text_encoder=clip_encoder_with_projection(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_encoder_with_projection(),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_encoder(),
        tokenizer_3=t5_tokenizer(),
        text_encoder_4=LlamaForCausalLM(llama),
        tokenizer_4=llm_tokenizer(),
    )
    pipeline.default_sample_size = SIZE // 2  # else the image is made larger
    return pipeline


@tiny("SanaSprintPipeline", **SANA, steps=2)
def sana_sprint() -> DiffusionPipeline:
    scheduler = SCMScheduler(prediction_type="trigflow", sigma_data=0.5)
    return SanaSprintPipeline(**{**sana_parts(guidance_embeds=True), "scheduler": scheduler})
