"""Stable Diffusion 1.5 and XL, under every kind of scheduler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    TCDScheduler,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)

from tests.tiny.common import (
    CLIP_WIDTH,
    SIZE,
    clip_encoder,
    clip_encoder_with_projection,
    clip_tokenizer,
    prompts_and,
    tiny,
    vae,
)

SQUARE: dict[str, Any] = {"height": SIZE, "width": SIZE}
GUIDED: dict[str, Any] = {"guidance_scale": 4.0}
BLOCKS: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "norm_num_groups": 8,
}
# of Stable Diffusion
BETAS: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
# without an offset, the pipeline changes the schedule
OFFSET: dict[str, Any] = {
    **BETAS,
    "steps_offset": 1,
}


def unet(**changes: Any) -> UNet2DConditionModel:
    options: dict[str, Any] = {
        "sample_size": 8,
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": CLIP_WIDTH,
        "attention_head_dim": 2,
    }
    return UNet2DConditionModel(**{**BLOCKS, **options, **changes})


def sd_parts(scheduler: Any = None, **changes: Any) -> dict[str, Any]:
    parts: dict[str, Any] = {
        "unet": unet(),
        "scheduler": scheduler or PNDMScheduler(**OFFSET, skip_prk_steps=True),
        "vae": vae(),
        "text_encoder": clip_encoder(),
        "tokenizer": clip_tokenizer(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    return {**parts, **changes}


@tiny("StableDiffusionPipeline", **SQUARE, **GUIDED)
def sd() -> DiffusionPipeline:
    return StableDiffusionPipeline(**sd_parts(ddim()))


def ddim() -> DDIMScheduler:
    return DDIMScheduler(**OFFSET, clip_sample=False, set_alpha_to_one=False)


SCHEDULERS: dict[str, Callable[[], Any]] = {
    "PNDM": lambda: PNDMScheduler(**OFFSET, skip_prk_steps=True),
    "PNDM-prk": lambda: PNDMScheduler(**OFFSET, skip_prk_steps=False),
    "Heun": lambda: HeunDiscreteScheduler(**OFFSET),
    "EulerAncestral": lambda: EulerAncestralDiscreteScheduler(**OFFSET),
    "DPM++2M-SDE": lambda: DPMSolverMultistepScheduler(
        **OFFSET, algorithm_type="sde-dpmsolver++", use_karras_sigmas=True
    ),
    "DPM-singlestep": lambda: DPMSolverSinglestepScheduler(**BETAS, final_sigmas_type="sigma_min"),
    "LCM": lambda: LCMScheduler(**OFFSET),
    "TCD": lambda: TCDScheduler(**OFFSET),
    "KDPM2": lambda: KDPM2DiscreteScheduler(**OFFSET),
    "KDPM2Ancestral": lambda: KDPM2AncestralDiscreteScheduler(**OFFSET),
    "UniPC": lambda: UniPCMultistepScheduler(**OFFSET),
}


def sd_with(scheduler: Callable[[], Any]) -> Callable[[], DiffusionPipeline]:
    return lambda: StableDiffusionPipeline(**sd_parts(scheduler()))


for key, make in SCHEDULERS.items():
    steps = 6 if key == "PNDM-prk" else 4
    tiny(f"StableDiffusionPipeline-{key}", steps=steps, **SQUARE, **GUIDED)(sd_with(make))
tiny("StableDiffusionPipeline-DDIM-eta", **SQUARE, **GUIDED, eta=0.5)(sd_with(ddim))


@tiny("StableDiffusionImg2ImgPipeline", each=prompts_and("image"), strength=0.75, **GUIDED)
def sd_img2img() -> DiffusionPipeline:
    return StableDiffusionImg2ImgPipeline(**sd_parts(ddim()))


@tiny(
    "StableDiffusionInpaintPipeline",
    each=prompts_and("image", "mask_image"),
    strength=1.0,
    **SQUARE,
    **GUIDED,
)
def sd_inpaint() -> DiffusionPipeline:
    return StableDiffusionInpaintPipeline(**sd_parts(ddim(), unet=unet(in_channels=9)))


@tiny("StableDiffusionControlNetPipeline", each=prompts_and("image"), **SQUARE, **GUIDED)
def sd_controlnet() -> DiffusionPipeline:
    controlnet = ControlNetModel(
        **BLOCKS,
        cross_attention_dim=CLIP_WIDTH,
        attention_head_dim=2,
        conditioning_embedding_out_channels=(8, 16),
    )
    return StableDiffusionControlNetPipeline(**sd_parts(controlnet=controlnet))


@tiny("StableDiffusionPAGPipeline", **SQUARE, **GUIDED, pag_scale=2.0)
def sd_pag() -> DiffusionPipeline:
    return StableDiffusionPAGPipeline(**sd_parts(ddim()), pag_applied_layers=["mid", "up"])


def sdxl_parts(scheduler: Any = None) -> dict[str, Any]:
    return {
        "unet": unet(
            attention_head_dim=(2, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=(1, 2),
            projection_class_embeddings_input_dim=6 * 8 + CLIP_WIDTH,
            cross_attention_dim=2 * CLIP_WIDTH,
        ),
        "scheduler": scheduler or EulerDiscreteScheduler(**OFFSET),
        "vae": vae(),
        "text_encoder": clip_encoder(),
        "tokenizer": clip_tokenizer(),
        "text_encoder_2": clip_encoder_with_projection(),
        "tokenizer_2": clip_tokenizer(),
    }


@tiny("StableDiffusionXLPipeline", **SQUARE, **GUIDED)
def sdxl() -> DiffusionPipeline:
    return StableDiffusionXLPipeline(**sdxl_parts(), add_watermarker=False)


@tiny("StableDiffusionXLPipeline-Heun", **SQUARE, **GUIDED)
def sdxl_heun() -> DiffusionPipeline:
    scheduler = HeunDiscreteScheduler(**OFFSET, use_karras_sigmas=True)
    return StableDiffusionXLPipeline(**sdxl_parts(scheduler), add_watermarker=False)


@tiny("StableDiffusionXLImg2ImgPipeline", each=prompts_and("image"), strength=0.75, **GUIDED)
def sdxl_img2img() -> DiffusionPipeline:
    return StableDiffusionXLImg2ImgPipeline(**sdxl_parts(), add_watermarker=False)
