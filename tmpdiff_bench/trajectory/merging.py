"""Calls of a denoiser joined to one, wherever this gives every row what its own call gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tmpdiff_bench.trajectory.replay import Request, cloned, tensors_in


class UnlikeError(Exception):
    """Values that can't be joined as the examples say."""


@dataclass(frozen=True)
class Merging:
    """How calls are joined, by example: `small` and `large` are arguments of one call, for some
    samples and for more of the same; `one` and `two` are outputs of a call, and of it joined to
    itself.
    """

    small: Any
    large: Any
    one: Any
    two: Any

    @classmethod
    def tried(cls, small: Request, large: Request, compute: Callable[[Request], Any]) -> Merging:
        """Learnt from two calls, and tried.

        Raises:
            UnlikeError: rows of a call depend on others, or on their order; or what makes the
                difference between the calls isn't known.
        """
        one = compute(small)
        merging = cls((small.args, small.kwargs), (large.args, large.kwargs), one, one)
        two = compute(merging.joined([small, small]))
        merging = replace(merging, two=two)
        for half in merging.parted(two, 2):
            for mine, alone in zip(tensors_in(half), tensors_in(one), strict=True):
                size = alone.abs().max()
                if (mine - alone).abs().max() > torch.finfo(alone.dtype).eps ** 0.5 * size:
                    raise UnlikeError("rows depend on others")
        return merging.shapes()

    def shapes(self) -> Merging:
        """The same without the values of tensors."""
        return Merging(*(_map(lambda x: x.to("meta"), x) for x in vars(self).values()))

    def joined(self, requests: Sequence[Request]) -> Request:
        """One call in the place of several."""
        given = [(request.args, request.kwargs) for request in requests]
        args, kwargs = _join(self.small, self.large, given)
        return replace(requests[0], args=args, kwargs=kwargs)

    def parted(self, output: Any, count: int) -> list[Any]:
        """What each of `count` calls would have returned."""
        return [_part(self.one, self.two, output, i, count) for i in range(count)]


def _grown(small: Any, large: Any) -> int | None:
    """The only dimension in which two tensors differ; None where they have one shape."""
    if small.ndim != large.ndim:
        raise UnlikeError("tensors of different dimensions")
    differing = [d for d in range(small.ndim) if small.shape[d] != large.shape[d]]
    if len(differing) > 1:
        raise UnlikeError("tensors that differ in more than one dimension")
    return differing[0] if differing else None


def _join(small: Any, large: Any, values: Sequence[Any]) -> Any:
    """`values` joined as `small` would have to be to become `large`."""
    first = values[0]
    if any(type(value) is not type(small) for value in (large, *values)):
        raise UnlikeError("values of different types")
    if isinstance(small, Tensor):
        dim = _grown(small, large)
        if any(value.ndim != small.ndim or value.shape != first.shape for value in values):
            raise UnlikeError("tensors of other shapes")
        if dim is not None:
            return torch.cat(list(values), dim)
        if any(not torch.equal(value, first) for value in values[1:]):
            raise UnlikeError("tensors that calls share differ")
        return first
    if isinstance(small, Mapping):
        if any(value.keys() != small.keys() for value in (large, *values)):
            raise UnlikeError("other names")
        return {k: _join(small[k], large[k], [value[k] for value in values]) for k in small}
    if isinstance(small, list | tuple):
        if len(small) != len(large):  # an entry a row
            return type(small)(entry for value in values for entry in value)
        if any(len(value) != len(small) for value in values):
            raise UnlikeError("lists of different lengths")
        each = zip(small, large, zip(*values, strict=True), strict=True)
        return type(small)([_join(*entries) for entries in each])
    if small != large or any(value != first for value in values):
        raise UnlikeError("settings that differ")
    return first


def _part(one: Any, two: Any, output: Any, i: int, count: int) -> Any:
    """Part i of `count` of an output, by the example of `one` and `two`, which has two parts."""
    if isinstance(one, Tensor):
        dim = _grown(one, two)
        return (output if dim is None else output.chunk(count, dim)[i]).clone()
    if isinstance(one, list | tuple):
        if len(one) != len(two):
            size = len(output) // count
            return cloned(output[i * size : (i + 1) * size])
        return type(one)(
            [_part(*entries, i, count) for entries in zip(one, two, output, strict=True)]
        )
    if isinstance(one, Mapping):
        return type(output)(**{k: _part(one[k], two[k], output[k], i, count) for k in one})
    raise UnlikeError("an output of another kind")


def _map(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same structure with other tensors."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _map(change, entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_map(change, entry) for entry in value])
    return value
