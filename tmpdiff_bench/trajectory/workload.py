"""What a recording is of: everything that changes a number, and where it was computed."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from tmpdiff_bench import __version__
from tmpdiff_bench.store import digest

ALGORITHM_VERSION = 3  # raised whenever the engine or the design of a recording changes a number


@dataclass(frozen=True)
class Workload:
    """Model, sampler, samples and numerical settings of a recording.

    `prompts` maps prompt ids to texts; every prompt runs with every seed. `sampler` is the
    scheduler's class and settings. `max_batch` samples at a time go through the network, one run
    after the other: batching changes last bits. `vae_tile`: pixels a side of the tiles that images
    are decoded in, if they are.
    """

    model: str
    weights: str
    weights_digest: str
    sampler: dict[str, Any]
    steps: int
    guidance: float
    resolution: tuple[int, int]
    prompts: dict[str, str]
    seeds: tuple[int, ...]
    dtype: str
    max_batch: int
    vae_tile: int | None = None

    @property
    def samples(self) -> tuple[tuple[str, int], ...]:
        """(prompt id, seed) pairs, prompt by prompt."""
        return tuple((prompt, seed) for prompt in self.prompts for seed in self.seeds)

    def key(self, **more: Any) -> str:
        """sha256 of canonical JSON over the workload, `more` and the algorithm's version."""
        return digest({**self._settings(), **more, "prompts": self.prompts, "seeds": self.seeds})

    def cell_key(self, samples: Sequence[tuple[str, int]], **more: Any) -> str:
        """The same for a cell of some samples, which the other prompts and seeds do not change."""
        texts = [(prompt, self.prompts[prompt], seed) for prompt, seed in samples]
        return digest({**self._settings(), **more, "samples": texts})

    def _settings(self) -> dict[str, Any]:
        # the name of the weights changes no number, their digest does
        absent = {"weights", "prompts", "seeds"}
        fields = {k: v for k, v in asdict(self).items() if k not in absent}
        if self.vae_tile is None:  # keys of before there were tiles stay as they are
            del fields["vae_tile"]
        return {**fields, "algorithm": ALGORITHM_VERSION}


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
