"""Which native levels a device runs, and the reason where it does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.levels.leaf import compute_dtype
from tmpdiff_bench.levels.level import NATIVE, Level

_GENERATIONS = {7: "Volta or Turing", 8: "Ampere or Ada", 9: "Hopper", 10: "Blackwell"}
# level: least compute capability whose tensor cores (w8a16, w4a16: whose kernels) take the format
_CUDA = {
    "fp16": (7, 0),
    "bf16": (8, 0),
    "w8a8": (7, 5),
    "w8a16": (8, 0),
    "w4a16": (8, 0),
    "fp8": (8, 9),
    "mxfp8": (10, 0),
    "nvfp4": (10, 0),
}
_NO_KERNEL = {
    "w4a8": "neither torch nor torchao has a kernel for 4-bit weights with 8-bit activations",
    "w4a4": "neither torch nor torchao has a kernel for 4-bit integers",
    "mxfp6": "torchao has no kernel for it",
    "mxfp4": "torchao has a kernel for it only with the package mslk, which is not used here",
}


@dataclass(frozen=True)
class Device:
    """What decides which kernels run: `kind` as in torch, CUDA's compute `capability`, and of CPUs
    the `features` among "bf16" (AVX-512 or AMX) and "int8" (VNNI or AMX).
    """

    kind: str
    name: str
    capability: tuple[int, int] | None = None
    features: frozenset[str] = frozenset()

    @classmethod
    def of(cls, device: torch.device) -> Device:
        """The device as torch sees it."""
        if device.type == "cuda":
            capability = torch.cuda.get_device_capability(device)
            return cls("cuda", torch.cuda.get_device_name(device), capability)
        if device.type != "cpu":
            return cls(device.type, device.type)
        found = {
            "bf16": torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported(),
            "int8": torch.cpu._is_vnni_supported() or torch.cpu._is_amx_tile_supported(),
        }
        usable = torch.backends.mkldnn.is_available()
        return cls("cpu", "this CPU", None, frozenset(f for f in found if found[f] and usable))


_OWN = {torch.bfloat16: "bf16", torch.float16: "fp16"}


def is_reference(level: Level, denoiser: nn.Module) -> bool:
    """Whether a level leaves a denoiser as it is: `fp32`, or the dtype that it computes in,
    simulated or native.
    """
    return level.is_plain or level.base == _OWN.get(compute_dtype(denoiser))


def check_runs(level: Level, denoiser: nn.Module) -> None:
    """Raise `UsageError`, with the reason, where the denoiser's device can't run the level."""
    check_device_runs([level.name], next(denoiser.parameters()).device)


def check_device_runs(levels: Sequence[str], device: torch.device) -> None:
    """The same for names of levels on a device, before anything is loaded."""
    for level in map(Level.parse, levels):
        if reason := reason_against(level, Device.of(device)):
            raise UsageError(f"level {level} can't run on {Device.of(device).name}: {reason}")


def reason_against(level: Level, device: Device) -> str | None:
    """Why `device` can't run a level natively; None for a level that it runs, or that is simulated.

    >>> reason_against(Level.parse("native:nvfp4"), Device("cuda", "H200", (9, 0)))
    'Hopper has no 4-bit tensor cores; nvfp4 needs compute capability 10.0, H200 has 9.0'
    """
    if level.is_plain or level.backend != NATIVE:
        return None
    if level.rank:
        return "no kernel here joins a low-rank branch with low-precision products"
    if device.kind == "cuda" and device.capability is not None:
        return _against_cuda(level.base, device.name, device.capability)
    if level.base in _NO_KERNEL:
        return _NO_KERNEL[level.base]
    if device.kind != "cpu":
        return f"native levels run on CPUs and on CUDA, not on {device.name}"
    wanted = {"bf16": "bf16", "w8a8": "int8"}.get(level.base)
    if wanted is None:
        return f"no kernel for {level.base} on CPUs is used here; CPUs run native:bf16, native:w8a8"
    if wanted not in device.features:
        unit = "AVX-512 BF16 or AMX" if wanted == "bf16" else "AVX-512 VNNI or AMX"
        return f"{device.name} has no {wanted} products ({unit}), or this torch no oneDNN"
    return None


def _against_cuda(base: str, name: str, capability: tuple[int, int]) -> str | None:
    generation = _GENERATIONS.get(capability[0], name)
    if base in ("w4a4", "nvfp4", "mxfp4") and (8, 9) < capability < (10, 0):
        lack = f"{generation} has no 4-bit tensor cores"
    elif base in _NO_KERNEL:
        return _NO_KERNEL[base]
    elif capability >= _CUDA[base]:
        return None
    else:
        lack = f"{generation} has no tensor cores for {base}"
    if base not in _CUDA:
        return f"{lack}, and {_NO_KERNEL[base]}"
    major, minor = _CUDA[base]
    return (
        f"{lack}; {base} needs compute capability {major}.{minor}, "
        f"{name} has {capability[0]}.{capability[1]}"
    )
