"""The arguments of a pipeline's `__call__`: shared by all samples, one a sample, and seeds."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tmpdiff_bench.errors import UsageError, unknown

# arguments that the library gives, and the option that sets them, if one does
_OWNED = {
    "generator": "--seed sets the noise",
    "latents": "noise comes from seeds, --seed sets the first",
    "num_inference_steps": "--steps sets it",
    "output_type": "the recorder asks for latents and images",
    "return_dict": "the recorder reads tuples",
    "callback_on_step_end": "a recording has no use for it",
    "callback_on_step_end_tensor_inputs": "a recording has no use for it",
    "num_images_per_prompt": "--num-seeds sets the images of a prompt",
    "num_videos_per_prompt": "--num-seeds sets the videos of a prompt",
}
_NEEDED = ("num_inference_steps", "generator")


@dataclass(frozen=True)
class Call:
    """Arguments of `__call__` for n samples: those that all `shared` (`num_inference_steps` among
    them), those with a value for `each` sample by name, and the `seeds` of their generators.

    Raises:
        UsageError: an argument of `each` has not a value a sample.
    """

    shared: Mapping[str, Any]
    each: Mapping[str, Sequence[Any]]
    seeds: Sequence[int]

    def __post_init__(self) -> None:
        for name, values in self.each.items():
            if len(values) != len(self):
                raise UsageError(f"{len(values)} values of {name} for {len(self)} samples")

    def __len__(self) -> int:
        return len(self.seeds)

    def rows(self, rows: Sequence[int]) -> Call:
        """The call of some samples."""
        each = {name: [values[row] for row in rows] for name, values in self.each.items()}
        return Call(self.shared, each, tuple(self.seeds[row] for row in rows))

    def arguments(self) -> dict[str, Any]:
        """For `pipe(**arguments)`, which runs all samples as one batch: lists with an entry a
        sample, or, of one sample, the values themselves. Generators are fresh, and stand on the
        CPU: noise is the same on every device.
        """
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in self.seeds]
        if len(self) == 1:
            alone = {name: values[0] for name, values in self.each.items()}
            return {**self.shared, **alone, "generator": generators[0]}
        shared = {
            # of a batch, texts stand in lists as the prompts do
            name: [value] * len(self) if isinstance(value, str) and "prompt" in name else value
            for name, value in self.shared.items()
        }
        each = {name: list(values) for name, values in self.each.items()}
        return {**shared, **each, "generator": generators}


def check_call(pipe: Any, names: Iterable[str]) -> None:
    """Raise `UsageError` for arguments that the pipeline lacks, with the nearest it has, or that
    are set otherwise; and for a pipeline that takes no generator or number of steps.
    """
    kind, known = type(pipe).__name__, _parameters(pipe)
    for name in _NEEDED:
        if name not in known:
            raise UsageError(f"a {kind} takes no {name}: its runs can't be set apart by it")
    for name in names:
        if name in _OWNED:
            raise UsageError(f"call argument {name} can't be given: {_OWNED[name]}")
        if name not in known:
            raise unknown(f"call argument of {kind}", name, known.keys() - _OWNED.keys())


def read_argument(pipe: Any, name: str, value: Any) -> Any:
    """A value as the pipeline takes it: paths of images are opened.

    Raises:
        UsageError: an image that can't be read.
    """
    annotation = str(_parameters(pipe)[name].annotation) if name in _parameters(pipe) else ""
    if not isinstance(value, str | Path) or not ("image" in name or "Image" in annotation):
        return value
    try:
        with Image.open(value) as image:
            return image.convert("L" if "mask" in name else "RGB")
    except OSError as error:
        raise UsageError(f"{name} {value} can't be read as an image: {error}") from error


@contextmanager
def refusing(pipe: Any, started: Callable[[], object]) -> Iterator[None]:
    """What a pipeline says against the arguments of its call, before its loop has `started`, is the
    user's mistake: a `UsageError`.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        if isinstance(error, UsageError) or started():
            raise
        told = " ".join(str(error).split())
        raise UsageError(f"a {type(pipe).__name__} refuses its arguments: {told}") from error


def _parameters(pipe: Any) -> dict[str, inspect.Parameter]:
    found = dict(inspect.signature(type(pipe).__call__).parameters)
    found.pop("self", None)
    return found
