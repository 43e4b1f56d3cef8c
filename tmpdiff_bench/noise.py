"""Keyed noise: each (prompt id, seed, purpose[, step]) has a random stream of its own.

A sample's noise never depends on the batch, the order, the device or the other prompts of a run
(DESIGN §6).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def keyed_noise(
    prompt_id: str, seed: int, purpose: str, shape: Sequence[int], *, step: int | None = None
) -> Tensor:
    """Standard normal noise of `shape`, float32 on the CPU, drawn for one sample.

    The key is hashed with sha256 into the 128-bit key of a Philox generator (Salmon et al. 2011),
    whose stream NumPy keeps the same on every platform.
    """
    key = json.dumps([prompt_id, seed, purpose, step], ensure_ascii=False)
    digest = hashlib.sha256(key.encode()).digest()
    words = np.frombuffer(digest[:16], dtype="<u8")
    stream = np.random.Generator(np.random.Philox(key=words))
    return torch.from_numpy(stream.standard_normal(tuple(shape), dtype=np.float32))


def generator_seed(prompt_id: str, seed: int) -> int:
    """The seed (0 to 2^32 - 1) of the `torch.Generator` that a sample's pipeline call is given."""
    key = json.dumps([prompt_id, seed, "generator"], ensure_ascii=False)
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "little")
