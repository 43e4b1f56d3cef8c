"""Image transformers with CLIP and T5 encoders, most of them trained by flow matching."""

from __future__ import annotations

from typing import Any

from diffusers import (
    ChromaPipeline,
    ChromaTransformer2DModel,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxControlPipeline,
    FluxFillPipeline,
    FluxImg2ImgPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3PAGPipeline,
    StableDiffusion3Pipeline,
)

from tests.tiny.common import (
    CLIP_WIDTH,
    SIZE,
    T5_WIDTH,
    clip_encoder,
    clip_encoder_with_projection,
    clip_tokenizer,
    flow_vae,
    prompts_and,
    t5_encoder,
    t5_tokenizer,
    tiny,
    vae,
)

SQUARE: dict[str, Any] = {"height": SIZE, "width": SIZE}


def sd3_parts(*, dual_attention_layers: tuple[int, ...] = (0,)) -> dict[str, Any]:
    return {
        "transformer": SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=3,
            attention_head_dim=16,
            num_attention_heads=2,
            caption_projection_dim=32,
            joint_attention_dim=T5_WIDTH,
            pooled_projection_dim=2 * CLIP_WIDTH,
            pos_embed_max_size=16,
            dual_attention_layers=dual_attention_layers,
            qk_norm="rms_norm",
        ),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "vae": flow_vae(),
        "text_encoder": clip_encoder_with_projection(),
        "tokenizer": clip_tokenizer(),
        "text_encoder_2": clip_encoder_with_projection(),
        "tokenizer_2": clip_tokenizer(),
        "text_encoder_3": t5_encoder(),
        "tokenizer_3": t5_tokenizer(),
    }


SD3: dict[str, Any] = {"guidance_scale": 4.0, "max_sequence_length": 16}


@tiny("StableDiffusion3Pipeline", **SQUARE, **SD3)
def sd3() -> DiffusionPipeline:
    return StableDiffusion3Pipeline(**sd3_parts())


tiny(
    "StableDiffusion3Pipeline-skip-layer",
    **SQUARE,
    **SD3,
    steps=6,
    skip_guidance_layers=[1],
    skip_layer_guidance_start=0.2,
    skip_layer_guidance_stop=0.7,
)(sd3)


@tiny("StableDiffusion3Pipeline-FlowMatchHeun", **SQUARE, **SD3)
def sd3_heun() -> DiffusionPipeline:
    return StableDiffusion3Pipeline(
        **{**sd3_parts(), "scheduler": FlowMatchHeunDiscreteScheduler(shift=3.0)}
    )


@tiny("StableDiffusion3Img2ImgPipeline", each=prompts_and("image"), strength=0.75, **SD3, **SQUARE)
def sd3_img2img() -> DiffusionPipeline:
    return StableDiffusion3Img2ImgPipeline(**sd3_parts())


def flux_parts(*, channels: int = 16) -> dict[str, Any]:
    return {
        "transformer": FluxTransformer2DModel(
            patch_size=1,
            in_channels=channels,
            out_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=T5_WIDTH,
            pooled_projection_dim=CLIP_WIDTH,
            guidance_embeds=True,
            axes_dims_rope=(4, 4, 8),
        ),
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": flow_vae(),
        "text_encoder": clip_encoder(),
        "tokenizer": clip_tokenizer(),
        "text_encoder_2": t5_encoder(),
        "tokenizer_2": t5_tokenizer(),
    }


FLUX: dict[str, Any] = {**SQUARE, "guidance_scale": 3.5, "max_sequence_length": 16}


@tiny("FluxPipeline", **FLUX)
def flux() -> DiffusionPipeline:
    return FluxPipeline(**flux_parts())


tiny("FluxPipeline-true-cfg", **FLUX, true_cfg_scale=2.0, negative_prompt="a green star")(flux)


@tiny("FluxImg2ImgPipeline", each=prompts_and("image"), strength=0.75, **FLUX)
def flux_img2img() -> DiffusionPipeline:
    return FluxImg2ImgPipeline(**flux_parts())


@tiny("FluxControlPipeline", each=prompts_and("control_image"), **FLUX)
def flux_control() -> DiffusionPipeline:
    return FluxControlPipeline(**flux_parts(channels=32))


@tiny(
    "PixArtSigmaPipeline",
    **SQUARE,
    guidance_scale=4.0,
    max_sequence_length=16,
    use_resolution_binning=False,
    clean_caption=False,
)
def pixart() -> DiffusionPipeline:
    return PixArtSigmaPipeline(
        transformer=PixArtTransformer2DModel(
            sample_size=8,
            num_layers=2,
            patch_size=2,
            attention_head_dim=16,
            num_attention_heads=2,
            caption_channels=T5_WIDTH,
            in_channels=4,
            cross_attention_dim=32,
            out_channels=8,
            use_additional_conditions=False,
        ),
        scheduler=DPMSolverMultistepScheduler(),
        vae=vae(),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
    )


@tiny("ChromaPipeline", **SQUARE, guidance_scale=4.0, max_sequence_length=16)
def chroma() -> DiffusionPipeline:
    return ChromaPipeline(
        transformer=ChromaTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=T5_WIDTH,
            axes_dims_rope=(4, 4, 8),
            approximator_hidden_dim=32,
            approximator_layers=1,
            approximator_num_channels=16,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=flow_vae(),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
    )


@tiny("StableDiffusion3PAGPipeline", **SQUARE, **SD3, pag_scale=2.0)
def sd3_pag() -> DiffusionPipeline:
    parts = sd3_parts(dual_attention_layers=())
    return StableDiffusion3PAGPipeline(**parts, pag_applied_layers=["blocks.1"])


@tiny("FluxControlNetPipeline", each=prompts_and("control_image"), **FLUX)
def flux_controlnet() -> DiffusionPipeline:
    parts = flux_parts()
    controlnet = FluxControlNetModel.from_config({**parts["transformer"].config, "num_layers": 1})
    return FluxControlNetPipeline(**parts, controlnet=controlnet)


@tiny(
    "FluxKontextPipeline", each=prompts_and("image"), **FLUX, _auto_resize=False, max_area=SIZE**2
)
def flux_kontext() -> DiffusionPipeline:
    return FluxKontextPipeline(**flux_parts())


@tiny("FluxFillPipeline", each=prompts_and("image", "mask_image"), **FLUX)
def flux_fill() -> DiffusionPipeline:
    return FluxFillPipeline(**flux_parts(channels=48))
