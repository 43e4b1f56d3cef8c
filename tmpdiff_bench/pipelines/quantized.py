"""Which layers precision levels change, per class of denoiser: the one place that says so."""

from __future__ import annotations

from torch import nn

from tmpdiff_bench.errors import unknown

# Linear and convolution layers below these submodules, but for those that have a part of their name
# that begins so: norms with their modulation, and what brings the timestep into residual blocks.
# Embedders and final projections are outside of all blocks, as is PixArt's one modulation layer.
_BLOCKS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "SD3Transformer2DModel": (("transformer_blocks",), ("norm",)),
    "FluxTransformer2DModel": (("transformer_blocks", "single_transformer_blocks"), ("norm",)),
    "PixArtTransformer2DModel": (("transformer_blocks",), ("norm",)),
    "UNet2DConditionModel": (("down_blocks", "mid_block", "up_blocks"), ("norm", "time_emb_proj")),
}


def quantized_layers(denoiser: nn.Module) -> tuple[str, ...]:
    """Names of the layers of a denoiser that levels change.

    Raises:
        UsageError: a denoiser of a class that is not known.
    """
    name = type(denoiser).__name__
    if name not in _BLOCKS:
        raise unknown("denoiser", name, _BLOCKS)
    blocks, kept = _BLOCKS[name]
    return tuple(
        path
        for path, module in denoiser.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
        and path.split(".")[0] in blocks
        and not any(part.startswith(kept) for part in path.split("."))
    )
