"""What levels can't follow: changes of a denoiser for which a module of the user's own stands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.levels.leaf import from_disk, is_hooked
from tmpdiff_bench.levels.own import OwnLevel, stored, tensors_of

SAMPLED = 2**16  # elements of a tensor that tell whether it has been written to
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Followed:
    """A denoiser as it was when levels of the user's own took the place of its layers, or its own.

    Raises:
        UsageError: a level that runs as a whole passes an adapter or a hook of the denoiser by.
    """

    def __init__(self, place: str, denoiser: nn.Module, own: Iterable[OwnLevel]) -> None:
        self._place, self.denoiser = place, denoiser
        levels = [level for level in own if level.module is not denoiser]
        self._names = ", ".join(level.name for level in levels)
        self._whole = [level for level in levels if level.exchanged is None]
        self._kept = list(tensors_of(denoiser)) if self._whole else _exchanged(denoiser, levels)
        self._sums = sums(denoiser, self._kept)
        if self._whole:
            self._check_whole(self._whole[0])
            self._tree = _tree(denoiser)

    def is_left(self) -> bool:
        """Whether the denoiser has changed in a way that they don't follow."""
        there = {id(tensor) for tensor in tensors_of(self.denoiser)}
        return (
            any(id(tensor) not in there for tensor in self._kept)
            or sums(self.denoiser, self._kept) != self._sums
            or (bool(self._whole) and _tree(self.denoiser) != self._tree)
        )

    def check(self) -> None:
        """Raise `UsageError` where it has."""
        if self.is_left():
            raise UsageError(
                f"the {self._place} was changed since the plan was applied, and {self._names}, of "
                "your own, can't follow: apply the plan anew, with a module that has the change"
            )

    def _check_whole(self, level: OwnLevel) -> None:
        for name, module in self.denoiser.named_modules():
            kind = None
            if isinstance(getattr(module, "base_layer", None), nn.Module):
                kind = "an adapter"
            elif is_hooked(module) and "_hf_hook" not in vars(module):
                kind = "a hook"
            if kind is not None:
                raise UsageError(
                    f"level {level.name} runs {level.words()}. It would pass by {kind} of the "
                    f"{self._place} ({name or 'itself'}): take that off first"
                )


def sums(denoiser: nn.Module, tensors: Sequence[Tensor]) -> list[int]:
    """A number for each tensor, another after almost any writing: adapters are merged by
    `weight.data +=`, which no counter of versions sees.
    """
    with from_disk(denoiser):
        found = [_sum(part) for tensor in tensors for part in stored(tensor.detach())]
    if not found:
        return []
    numbers: list[int] = torch.stack([x.to(found[0].device) for x in found]).tolist()
    return numbers


def _sum(tensor: Tensor) -> Tensor:
    """The sum of a tensor's bits, all or every so many, each times an odd number of its own."""
    if tensor.is_meta or not tensor.numel():
        return torch.zeros((), dtype=torch.int64)
    part = tensor.reshape(-1)[:: max(1, tensor.numel() // SAMPLED)].contiguous()
    bits = part.view(_BITS[part.element_size()]).long()
    return (bits * torch.arange(1, 2 * len(bits), 2, device=bits.device)).sum()


def _exchanged(denoiser: nn.Module, levels: Iterable[OwnLevel]) -> list[Tensor]:
    """Tensors of the denoiser for which others stand."""
    parts = {part for level in levels for part in level.exchanged or ()}
    inside = (x for module in denoiser.modules() if id(module) in parts for x in tensors_of(module))
    alone = (tensor for tensor in tensors_of(denoiser) if id(tensor) in parts)
    return list({id(tensor): tensor for tensor in (*inside, *alone)}.values())


def _tree(denoiser: nn.Module) -> list[Any]:
    """What else decides what a denoiser computes, as far as it can be told."""
    return [
        (
            id(module),
            is_hooked(module) and "_hf_hook" not in vars(module),
            id(vars(module).get("processor")),
            [(k, v) for k, v in vars(module).items() if isinstance(v, bool | int | float | str)],
        )
        for module in denoiser.modules()
    ]
