"""What a bank of levels will take, from shapes alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from tmpdiff_bench.levels.devices import check_runs, is_reference
from tmpdiff_bench.levels.formats import CASTS
from tmpdiff_bench.levels.leaf import QUANTIZABLE, compute_dtype
from tmpdiff_bench.levels.level import NATIVE, Level

RESIDENCIES = ("resident", "offload", "derive")
# bytes of a weight of torchao on CUDA, of an output channel, and of a group of 16 inputs
_TORCHAO = {
    "w8a8": (1.0, 4.0, 0.0),
    "w8a16": (1.0, 4.0, 0.0),
    "fp8": (1.0, 4.0, 0.0),
    "w4a16": (0.5, 0.0, 1.0),
    "mxfp8": (1.0, 0.0, 0.5),
    "nvfp4": (0.5, 0.0, 1.0),
}


@dataclass(frozen=True)
class Memory:
    """Bytes of the reference denoiser, and of the weights that each level has for itself."""

    reference: int
    own: dict[str, int]
    residency: str

    @property
    def total(self) -> int:
        """Bytes on the denoiser's device: all levels when resident, otherwise the largest."""
        own = self.own.values()
        return self.reference + (sum(own) if self.residency == "resident" else max(own, default=0))

    def __str__(self) -> str:
        each = ", ".join(f"{level} {_megabytes(size)}" for level, size in self.own.items())
        return (
            f"weights: {_megabytes(self.total)} ({self.residency}): reference "
            f"{_megabytes(self.reference)}, besides {each or 'nothing'}"
        )


def memory(
    denoiser: nn.Module,
    levels: Sequence[str],
    quantized: Sequence[str],
    residency: str = "resident",
) -> Memory:
    """What a `LevelBank` with these arguments takes.

    Raises:
        UsageError: a level is unknown, or one that the denoiser's device can't run.
    """
    tensors = [*denoiser.parameters(), *denoiser.buffers()]
    own = {}
    for level in map(Level.parse, levels):
        check_runs(level, denoiser)
        if not is_reference(level, denoiser):
            sizes = (own_bytes(denoiser.get_submodule(name), level) for name in quantized)
            own[level.name] = sum(sizes)
    return Memory(sum(t.nbytes for t in tensors), own, residency)


def own_bytes(layer: nn.Module, level: Level) -> int:
    """Bytes that a layer's twin at a level does not share with the reference.

    Smoothing factors of low-rank branches are counted for every layer, though some share them.
    """
    if not isinstance(layer, QUANTIZABLE):
        return 0
    weight, bias = layer.weight, layer.bias
    outputs, dtype = weight.shape[0], compute_dtype(layer)
    inputs = weight.numel() // outputs
    if level.backend != NATIVE:
        rank = min(level.rank or 0, outputs, inputs) if isinstance(layer, nn.Linear) else 0
        branch = rank * (outputs + inputs) + (inputs if rank else 0)
        return dtype.itemsize * (weight.numel() + branch)
    cast = 0 if bias is None or dtype == CASTS.get(level.base, torch.bfloat16) else 2 * bias.numel()
    if level.base in CASTS:
        return cast + 2 * weight.numel()
    if not isinstance(layer, nn.Linear):
        return 0
    if weight.device.type == "cpu":  # codes; a scale and a zero point an output
        return weight.numel() + (4 + 8) * outputs
    each, channel, sixteen = _TORCHAO[level.base]
    return cast + int(each * weight.numel() + channel * outputs + sixteen * weight.numel() / 16)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
