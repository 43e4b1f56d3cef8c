"""Tiny untrained pipelines of many diffusers classes, each with the arguments to call it by."""

from tests.tiny import flow, image, llm, pixel, unet, video, video_more
from tests.tiny.common import TINY, WARNINGS, Tiny

__all__ = [  # the modules register their pipelines in TINY
    "TINY",
    "WARNINGS",
    "Tiny",
    "flow",
    "image",
    "llm",
    "pixel",
    "unet",
    "video",
    "video_more",
]
