"""Diffusion pipelines with their denoising loop exposed step by step."""

from tmpdiff_bench.pipelines.base import Conditioning, SamplerState, StepwisePipeline
from tmpdiff_bench.pipelines.flux import FluxStepwise
from tmpdiff_bench.pipelines.loading import (
    DTYPES,
    EMBEDDED,
    MODELS,
    LoadedModel,
    check_device,
    embedded_models,
    load_model,
)
from tmpdiff_bench.pipelines.pixart import PixArtStepwise
from tmpdiff_bench.pipelines.quantized import quantized_layers
from tmpdiff_bench.pipelines.sd3 import Sd3Stepwise
from tmpdiff_bench.pipelines.sdxl import SdxlStepwise

__all__ = [
    "DTYPES",
    "EMBEDDED",
    "MODELS",
    "Conditioning",
    "FluxStepwise",
    "LoadedModel",
    "PixArtStepwise",
    "SamplerState",
    "Sd3Stepwise",
    "SdxlStepwise",
    "StepwisePipeline",
    "check_device",
    "embedded_models",
    "load_model",
    "quantized_layers",
]
