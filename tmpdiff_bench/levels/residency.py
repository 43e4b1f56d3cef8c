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
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tmpdiff_bench.levels.leaf import Layers, Make
from tmpdiff_bench.levels.native import pack, unpack


class Store(Protocol):
    """Layers of one level that come when they are needed, and go."""

    def wake(self) -> Layers:
        """The layers, ready to run."""
        ...

    def sleep(self) -> None:
        """Free the memory that the layers do not share with the reference."""
        ...


class Resident:
    """Layers that stay."""

    def __init__(self, make: Make) -> None:
        self._layers = make()

    def wake(self) -> Layers:
        return self._layers

    def sleep(self) -> None:
        pass


class Derived:
    """Layers that are made anew every time."""

    def __init__(self, make: Make) -> None:
        self._make = make

    def wake(self) -> Layers:
        return self._make()

    def sleep(self) -> None:
        pass


class Offloaded:
    """Layers that are made once, and whose own tensors are put aside in between."""

    def __init__(self, make: Make, reference: nn.Module) -> None:
        self._layers = make()
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
        return Resident(make)
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
