"""Diffusion pipelines with their denoising loop exposed step by step."""

from tmpdiff_bench.pipelines.base import Conditioning, SamplerState, StepwisePipeline
from tmpdiff_bench.pipelines.loading import EMBEDDED, MODELS, LoadedModel, load_model
from tmpdiff_bench.pipelines.sd3 import Sd3Stepwise

__all__ = [
    "EMBEDDED",
    "MODELS",
    "Conditioning",
    "LoadedModel",
    "SamplerState",
    "Sd3Stepwise",
    "StepwisePipeline",
    "load_model",
]
