"""What a pipeline's `__call__` takes and gives: arguments, prompts, seeds; latents and images."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from tmpdiff_bench.errors import UsageError, check_known, one_line

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
        check_known(f"call argument of {kind}", name, known.keys() - _OWNED.keys())


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
        said = f"a {type(pipe).__name__} refuses its arguments: {one_line(error)}"
        raise UsageError(said) from error


def _parameters(pipe: Any) -> dict[str, inspect.Parameter]:
    found = dict(inspect.signature(type(pipe).__call__).parameters)
    found.pop("self", None)
    return found


_UNLIMITED = 10**6  # transformers says so of tokenizers without a limit of their own


def cut_prompts(pipe: Any, texts: Sequence[str], arguments: Mapping[str, Any]) -> list[str]:
    """The texts of which a tokenizer of the pipeline takes the beginning only, in a call with these
    arguments.
    """
    own = inspect.signature(type(pipe).__call__).parameters.get("max_sequence_length")
    asked = arguments.get("max_sequence_length", own.default if own is not None else None)
    cut: dict[str, None] = {}
    for name, part in vars(pipe).items():
        if not name.startswith("tokenizer") or not callable(part):
            continue
        limits = [part.model_max_length, asked]
        limit = min((x for x in limits if isinstance(x, int) and x < _UNLIMITED), default=None)
        if limit is not None:
            for text in texts:
                if len(part(text, truncation=False, verbose=False)["input_ids"]) > limit:
                    cut[text] = None
    return [text for text in texts if text in cut]


def free_text_encoders(pipe: Any) -> None:
    """Drop the weights of the text encoders for good; what else pipelines ask them for stays."""
    for name, part in vars(pipe).items():
        if name.startswith("text_encoder") and isinstance(part, nn.Module):
            for tensor in (*part.parameters(), *part.buffers()):
                tensor.data = tensor.data.new_empty(0)


def as_images(output: Any) -> Tensor:
    """What a pipeline returns as "np", (n, H, W, 3) or (n, frames, H, W, 3), as images
    (n, 3, H, W); frames one below the other.
    """
    array = np.asarray(output, dtype=np.float32)
    if array.ndim == 5:
        array = array.reshape(array.shape[0], -1, *array.shape[3:])
    if array.ndim != 4:
        raise UsageError(f"the pipeline returns no images: its output has shape {array.shape}")
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def returns_latents(pipe: Any) -> bool:
    """Whether `__call__` knows output_type="latent"; else the last step's result is taken."""
    try:
        source = inspect.getsource(inspect.unwrap(type(pipe).__call__))
    except OSError:  # there is none of a class that was made on the fly
        return False
    return '"latent"' in source


@contextmanager
def calling(pipe: Any, started: Callable[[], object]) -> Iterator[None]:
    """Without the pipeline's own bar, as a recording has one for the whole; `refusing`."""
    before = vars(pipe).get("_progress_bar_config")
    vars(pipe)["_progress_bar_config"] = {"disable": True}
    try:
        with refusing(pipe, started):
            yield
    finally:
        if before is None:
            del vars(pipe)["_progress_bar_config"]
        else:
            vars(pipe)["_progress_bar_config"] = before
