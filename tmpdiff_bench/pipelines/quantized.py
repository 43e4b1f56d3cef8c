"""Which layers of a denoiser precision levels change, by its class; so a family's image-to-image
and inpainting pipelines, which share it, need no word of their own.
"""

from __future__ import annotations

from torch import nn

from tmpdiff_bench.errors import UsageError

# class: submodules whose linear and convolution layers are quantized (attention and feed-forward
# projections; of a UNet also residual blocks and resamplers), and what stays inside them: norms and
# modulation, what brings the timestep into a residual block, adapters of low rank
_LAYERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "SD3Transformer2DModel": (("transformer_blocks",), ("norm",)),
    "FluxTransformer2DModel": (("transformer_blocks", "single_transformer_blocks"), ("norm",)),
    "PixArtTransformer2DModel": (("transformer_blocks",), ("norm",)),
    "UNet2DConditionModel": (
        ("down_blocks", "mid_block", "up_blocks"),
        ("norm", "time_emb_proj"),
    ),
}


def quantized_layers(denoiser: nn.Module) -> tuple[str, ...]:
    """Names of the layers; the adapters that a LoRA brings stay, the layers below them do not.

    Raises:
        UsageError: a denoiser of another class.
    """
    name = denoiser.__class__.__name__
    if name not in _LAYERS:
        raise UsageError(
            f"which layers of a {name} are to be quantized is not known here (known: "
            f"{', '.join(_LAYERS)}): name them by quantized="
        )
    blocks, kept = _LAYERS[name]
    kept = (*kept, "lora_")
    return tuple(
        layer
        for layer, module in denoiser.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
        and layer.split(".")[0] in blocks
        and not any(part.startswith(kept) for part in layer.split("."))
    )
