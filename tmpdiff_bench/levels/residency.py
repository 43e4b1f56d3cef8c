"""Where the weights of levels that are not in use are.

`resident`: in memory, beside all others. `offload`: those of a denoiser on an accelerator in the
CPU's memory; those of one on the CPU in files of a temporary folder. `derive`: nowhere; they are
rounded again from the reference when their level is asked for. The reference always stays, and
outputs are the same in every bit.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tmpdiff_bench.levels.devices import check_runs, is_reference
from tmpdiff_bench.levels.formats import CASTS
from tmpdiff_bench.levels.leaf import QUANTIZABLE, Layers, Make, compute_dtype
from tmpdiff_bench.levels.level import NATIVE, Level
from tmpdiff_bench.levels.native import pack, unpack
from tmpdiff_bench.levels.own import own_bytes, stored_bytes


class Store:
    """Layers of one level that come when they are needed, and go; these are made once, and stay."""

    def __init__(self, make: Make) -> None:
        self._layers = make()

    def wake(self) -> Layers:
        """The layers, ready to run."""
        return self._layers

    def sleep(self) -> None:
        """Free the memory that the layers do not share with the reference."""


class Derived(Store):
    """Layers that are made anew every time."""

    def __init__(self, make: Make) -> None:
        self._make = make

    def wake(self) -> Layers:
        return self._make()


class Offloaded(Store):
    """Layers that are made once, and whose own tensors are put aside in between."""

    def __init__(self, make: Make, reference: nn.Module) -> None:
        super().__init__(make)
        self._device = next(reference.parameters()).device
        aside = _Files if self._device.type == "cpu" else _HostMemory
        self._aside: _Files | _HostMemory = aside([t for _, _, t in self._tensors()])
        self.sleep()

    def _tensors(self) -> list[tuple[dict[str, Tensor], str, Tensor]]:
        own = [leaf.own for leaf in self._layers.values()]
        return [(tensors, name, tensor) for tensors in own for name, tensor in tensors.items()]

    def wake(self) -> Layers:
        places = self._tensors()
        for (tensors, name, _), tensor in zip(places, self._aside.read(), strict=True):
            tensors[name] = tensor.to(self._device)
        return self._layers

    def sleep(self) -> None:
        nothing = torch.empty(0)
        for tensors, name, _ in self._tensors():
            tensors[name] = nothing


def store(mode: str, make: Make, reference: nn.Module) -> Store:
    """The layers that `make` makes, kept as a residency says."""
    if mode == "resident":
        return Store(make)
    return Derived(make) if mode == "derive" else Offloaded(make, reference)


class _HostMemory:
    """Tensors in the CPU's memory."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self._tensors = [tensor.detach().to("cpu") for tensor in tensors]

    def read(self) -> list[Tensor]:
        return self._tensors


class _Files:
    """Tensors in a file, removed with this object."""

    def __init__(self, tensors: list[Tensor]) -> None:
        folder = Path(tempfile.mkdtemp(prefix="tmpdiff-levels-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._packed = [tensor.is_mkldnn for tensor in tensors]
        self._path = folder / "weights.safetensors"
        plain = (unpack(t) if t.is_mkldnn else t.detach().clone() for t in tensors)
        save_file({str(i): tensor for i, tensor in enumerate(plain)}, self._path)

    def read(self) -> list[Tensor]:
        found = load_file(self._path)
        # copied out of the file's pages: kernels may sum in another order at another alignment
        tensors = (found[str(i)].clone() for i in range(len(found)))
        return [
            pack(tensor) if packed else tensor
            for tensor, packed in zip(tensors, self._packed, strict=True)
        ]


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
    """Bytes of the reference denoiser, and of the weights that each level has for itself. Those of
    `lasting` levels, which are modules of the user's, stay in memory with any residency.
    """

    reference: int
    own: dict[str, int]
    residency: str
    lasting: frozenset[str] = frozenset()

    @property
    def total(self) -> int:
        """Bytes on the denoiser's device: all levels when resident, otherwise the largest."""
        lasting = sum(self.own[name] for name in self.lasting)
        moving = [size for name, size in self.own.items() if name not in self.lasting]
        at_once = sum(moving) if self.residency == "resident" else max(moving, default=0)
        return self.reference + lasting + at_once

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
    own: Mapping[str, nn.Module] | None = None,
) -> Memory:
    """What a `LevelBank` with these arguments takes.

    Raises:
        UsageError: a level is unknown, or one that the denoiser's device can't run.
    """
    tensors = [*denoiser.parameters(), *denoiser.buffers()]
    given, found = own or {}, {}
    for name in levels:
        if name in given:
            if given[name] is not denoiser:
                found[name] = own_bytes(given[name], denoiser)
            continue
        level = Level.parse(name)
        check_runs(level, denoiser)
        if not is_reference(level, denoiser):
            found[name] = sum(layer_bytes(denoiser.get_submodule(x), level) for x in quantized)
    lasting = frozenset(found.keys() & given.keys())
    return Memory(sum(map(stored_bytes, tensors)), found, residency, lasting)


def layer_bytes(layer: nn.Module, level: Level) -> int:
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
