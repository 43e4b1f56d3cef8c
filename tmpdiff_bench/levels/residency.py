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
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.levels.native import pack, unpack

Layers = dict[str, nn.Module]


class Store(Protocol):
    """Layers of one level that come when they are needed, and go."""

    def wake(self) -> Layers:
        """The layers, ready to run."""
        ...

    def sleep(self) -> None:
        """Free the memory that the layers do not share with the reference."""
        ...


class Derived:
    """Layers that are made anew every time."""

    def __init__(self, make: Callable[[], Layers]) -> None:
        self._make = make

    def wake(self) -> Layers:
        return self._make()

    def sleep(self) -> None:
        pass


class Offloaded:
    """Layers that are made once, and whose own tensors are put aside in between."""

    def __init__(self, layers: Layers, reference: nn.Module) -> None:
        self._layers = layers
        self._device = next(reference.parameters()).device
        shared = {id(tensor) for tensor in (*reference.parameters(), *reference.buffers())}
        own: dict[tuple[nn.Module, str], Tensor] = {}
        for layer in layers.values():
            for module in layer.modules():
                for key, tensor in (*module._parameters.items(), *module._buffers.items()):
                    if tensor is not None and id(tensor) not in shared:
                        own[module, key] = tensor
        self._places = [(*place, isinstance(t, nn.Parameter)) for place, t in own.items()]
        aside = _Files if self._device.type == "cpu" else _HostMemory
        self._aside: _Files | _HostMemory = aside([*own.values()])
        self.sleep()

    def wake(self) -> Layers:
        for (module, key, is_parameter), tensor in zip(
            self._places, self._aside.read(), strict=True
        ):
            here = tensor.to(self._device)
            setattr(module, key, nn.Parameter(here, requires_grad=False) if is_parameter else here)
        return self._layers

    def sleep(self) -> None:
        for module, key, _ in self._places:
            setattr(module, key, None)


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


class Idle(nn.Module):
    """In the place of a layer whose weights are not here."""

    def __init__(self, level: str) -> None:
        super().__init__()
        self._level = level

    def forward(self, *_: object) -> Tensor:
        """Refuse. Raises `UsageError`."""
        raise UsageError(
            f"the weights of level {self._level} are put aside: ask the bank for bank[level] "
            "before every use, or keep all levels with residency='resident'"
        )
