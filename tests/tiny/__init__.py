"""Tiny untrained pipelines of many diffusers classes, each with the arguments to call it by."""

from collections.abc import Iterable
from typing import Any

import pytest

from tests.tiny import flow, image, llm, pixel, unet, video, video_more
from tests.tiny.common import TINY, WARNINGS, Tiny

# Those that tests run always; of all others, `nox -s tests_full` does.
CORE = {
    *("StableDiffusion3Pipeline", "StableDiffusion3Pipeline-skip-layer", "SanaPipeline"),
    *("StableDiffusion3Pipeline-FlowMatchHeun", "StableDiffusion3Img2ImgPipeline", "DiTPipeline"),
    *("FluxPipeline", "FluxImg2ImgPipeline", "FluxControlPipeline", "PixArtSigmaPipeline"),
    *("ChromaPipeline", "QwenImagePipeline", "ZImagePipeline", "Flux2KleinPipeline", "IFPipeline"),
    *("Lumina2Pipeline", "AuraFlowPipeline", "CogView4Pipeline", "StableDiffusionPipeline"),
    *("StableDiffusionPipeline-PNDM", "StableDiffusionPipeline-Heun", "WanPipeline"),
    *("StableDiffusionPipeline-EulerAncestral", "StableDiffusionPipeline-DPM++2M-SDE"),
    *("StableDiffusionPipeline-LCM", "StableDiffusionControlNetPipeline", "LTXPipeline"),
    *("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "WanImageToVideoPipeline"),
    *("WanPipeline-two-experts", "CogVideoXPipeline", "StableCascadePriorPipeline"),
    "StableAudioPipeline",
}


def each(names: Iterable[str]) -> list[Any]:
    """Parameters of a test that many pipelines pass."""
    return [pytest.param(x, marks=() if x in CORE else (pytest.mark.slow,)) for x in names]


__all__ = [  # the modules register their pipelines in TINY
    "CORE",
    "TINY",
    "WARNINGS",
    "Tiny",
    "each",
    "flow",
    "image",
    "llm",
    "pixel",
    "unet",
    "video",
    "video_more",
]
