"""What a recording is of: everything that changes a number, and where it was computed."""

from __future__ import annotations

import hashlib
import math
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers

from tmpdiff_bench import __version__
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.noise import generator_seed
from tmpdiff_bench.store import digest

ALGORITHM_VERSION = 4  # raised whenever the engine or the design of a recording changes a number


@dataclass(frozen=True)
class Workload:
    """Model, sampler, samples and numerical settings of a recording.

    `prompts` maps prompt ids to texts; every prompt runs with every seed. `arguments` of
    `__call__` are those that all samples share, `columns` those of single prompts, by name and
    prompt id: both as JSON. `sampler` is the scheduler's class and settings. `max_batch` samples at
    a time go through the network, one run after the other: batching changes last bits. `vae_tile`:
    pixels a side of the tiles that images are decoded in, if they are. `quantized`: the layers that
    levels change, where they are not those of the rule. `adapter`: a LoRA with its scale.
    """

    model: str
    weights: str
    weights_digest: str
    sampler: dict[str, Any]
    steps: int
    prompts: dict[str, str]
    seeds: tuple[int, ...]
    dtype: str
    max_batch: int
    arguments: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, dict[str, Any]] = field(default_factory=dict)
    vae_tile: int | None = None
    quantized: tuple[str, ...] | None = None
    adapter: str | None = None

    @property
    def samples(self) -> tuple[tuple[str, int], ...]:
        """(prompt id, seed) pairs, prompt by prompt."""
        return tuple((prompt, seed) for prompt in self.prompts for seed in self.seeds)

    @property
    def generator_seeds(self) -> tuple[int, ...]:
        """Of each sample, the seed of `torch.Generator("cpu")` that draws it again."""
        return tuple(generator_seed(prompt, seed) for prompt, seed in self.samples)

    def key(self, **more: Any) -> str:
        """sha256 of canonical JSON over the workload, `more` and the algorithm's version."""
        samples = {"prompts": self.prompts, "seeds": self.seeds, "columns": self.columns}
        return digest({**self._settings(), **more, **samples})

    def cell_key(self, samples: Sequence[tuple[str, int]], **more: Any) -> str:
        """The same for a cell of some samples, which the other prompts and seeds do not change."""
        texts = [
            (prompt, self.prompts[prompt], seed, {k: v[prompt] for k, v in self.columns.items()})
            for prompt, seed in samples
        ]
        return digest({**self._settings(), **more, "samples": texts})

    def _settings(self) -> dict[str, Any]:
        # the name of the weights changes no number, their digest does
        absent = {"weights", "prompts", "seeds", "columns"}
        fields = {k: v for k, v in asdict(self).items() if k not in absent}
        return {**fields, "algorithm": ALGORITHM_VERSION}


def plain(value: Any) -> Any:
    """A call argument as JSON: what is no JSON (an image, an array, a tensor) by its sha256.

    Raises:
        UsageError: an argument that has no content to take a digest of.
    """
    if isinstance(value, str | bool | int | None):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    try:
        array = np.asarray(value.cpu() if isinstance(value, torch.Tensor) else value)
        content = array.tobytes()
    except (TypeError, ValueError, RuntimeError):
        array, content = np.empty(0, dtype=object), b""
    if array.dtype == object:
        raise UsageError(
            f"a call argument is a {type(value).__name__}: a recording takes numbers, texts, "
            "images, arrays and tensors, by which its runs can be told apart"
        )
    about = [str(array.dtype), list(array.shape)]
    return {"sha256": hashlib.sha256(content).hexdigest(), "of": [type(value).__name__, *about]}


def sampler(scheduler: Any) -> dict[str, Any]:
    """Class and public settings of a diffusers scheduler, as JSON: infinities become text."""
    public = {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
    kept = {
        k: v for k, v in public.items() if isinstance(v, str | int | float | bool | list | None)
    }
    return {"class": type(scheduler).__name__, **plain(kept)}


def environment(device: str) -> dict[str, Any]:
    """Versions, device and git state: recorded, but no part of any key."""
    root = Path(__file__).parents[2]
    commit = _git(root, "rev-parse", "HEAD")
    return {
        "tmpdiff_bench": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "device": _device_name(device),
        "threads": torch.get_num_threads(),
        "git_commit": commit,
        "git_dirty": None if commit is None else bool(_git(root, "status", "--porcelain")),
    }


def _git(root: Path, *arguments: str) -> str | None:
    """Output of git in the checkout that holds the package; None for an installed package."""
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return f"{device} ({line.partition(':')[2].strip()})"
    return f"{device} ({platform.processor() or platform.machine()})"
