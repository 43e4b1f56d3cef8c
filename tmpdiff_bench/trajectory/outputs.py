"""What a pipeline returns: latents where it can, and images."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.pipelines.calls import refusing


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
