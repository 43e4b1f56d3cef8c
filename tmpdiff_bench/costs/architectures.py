"""The denoisers that people deploy, at their true size, on the meta device.

Configurations are those of the published `config.json` files (arguments not named here are
diffusers' defaults); each is checked by its published number of parameters.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from torch import Tensor, nn

from tmpdiff_bench.errors import UsageError, check_known

Inputs = dict[str, Any]
_LATENT_FACTOR = 8  # pixels a latent pixel's side, of every VAE here


@dataclass(frozen=True)
class Architecture:
    """A denoiser's class and configuration, and what one step of one image calls it with.

    `rows` is the batch of that call: two with classifier-free guidance. Sides of images are
    multiples of `multiple` pixels, `limit` at most. `parameters` is the published count.
    """

    title: str
    denoiser: Callable[..., nn.Module]
    config: Mapping[str, Any]
    inputs: Callable[[int, int, int], Inputs]
    rows: int
    multiple: int
    limit: int
    parameters: int

    def build(self, device: str = "meta") -> nn.Module:
        """The denoiser with random weights, on the meta device with none."""
        with torch.device(device):
            module: nn.Module = self.denoiser(**self.config).eval()
        return module

    def call(self, height: int, width: int, device: str = "meta", *, batch: int = 1) -> Inputs:
        """Arguments of the denoiser for `batch` images of `height` x `width` pixels.

        Raises:
            UsageError: the model takes no images of this size.
        """
        for side in (height, width):
            if side % self.multiple or not 0 < side <= self.limit:
                raise UsageError(
                    f"{self.title} takes images with sides of {self.multiple} to {self.limit} "
                    f"pixels in steps of {self.multiple}, not {width}x{height}"
                )
        with torch.device(device):
            return self.inputs(batch * self.rows, height // _LATENT_FACTOR, width // _LATENT_FACTOR)


def architecture(model: str) -> Architecture:
    """The true-size denoiser of a family. Raises `UsageError` for an unknown one."""
    check_known("model", model, ARCHITECTURES)
    return ARCHITECTURES[model]


def _sd3(rows: int, height: int, width: int) -> Inputs:
    return {
        "hidden_states": torch.empty(rows, 16, height, width),
        "encoder_hidden_states": torch.empty(rows, 77 + 256, 4096),
        "pooled_projections": torch.empty(rows, 2048),
        "timestep": torch.empty(rows),
    }


def _flux(rows: int, height: int, width: int) -> Inputs:
    tokens, text = (height // 2) * (width // 2), 512
    return {
        "hidden_states": torch.empty(rows, tokens, 64),
        "encoder_hidden_states": torch.empty(rows, text, 4096),
        "pooled_projections": torch.empty(rows, 768),
        "timestep": torch.empty(rows),
        "guidance": torch.empty(rows),
        "img_ids": torch.empty(tokens, 3),
        "txt_ids": torch.empty(text, 3),
    }


def _pixart(rows: int, height: int, width: int) -> Inputs:
    return {
        "hidden_states": torch.empty(rows, 4, height, width),
        "encoder_hidden_states": torch.empty(rows, 300, 4096),
        "encoder_attention_mask": torch.empty(rows, 300),
        "timestep": torch.empty(rows),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def _sdxl(rows: int, height: int, width: int) -> Inputs:
    condition: dict[str, Tensor] = {
        "text_embeds": torch.empty(rows, 1280),
        "time_ids": torch.empty(rows, 6),
    }
    return {
        "sample": torch.empty(rows, 4, height, width),
        "encoder_hidden_states": torch.empty(rows, 77, 2048),
        "timestep": torch.empty(rows),
        "added_cond_kwargs": condition,
    }


def _architecture(told: Mapping[str, Any]) -> Architecture:
    kind, inputs = _KINDS[told["class"]]
    fields = {name: value for name, value in told.items() if name != "class"}
    return Architecture(denoiser=kind, inputs=inputs, **fields)


_KINDS: Mapping[str, tuple[Callable[..., nn.Module], Callable[[int, int, int], Inputs]]] = {
    "SD3Transformer2DModel": (SD3Transformer2DModel, _sd3),
    "FluxTransformer2DModel": (FluxTransformer2DModel, _flux),
    "PixArtTransformer2DModel": (PixArtTransformer2DModel, _pixart),
    "UNet2DConditionModel": (UNet2DConditionModel, _sdxl),
}
_TOLD = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
ARCHITECTURES = {model: _architecture(told) for model, told in _TOLD.items()}
