"""Keyed noise and seeds: standard normal, distinct for every key, and never another."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import torch
from scipy import stats

from tmpdiff_bench.noise import generator_seed, keyed_noise

SHAPE = (4, 16, 16)


def test_untouched_by_global_generators() -> None:
    first = keyed_noise("a", 0, "initial", SHAPE)
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(keyed_noise("a", 0, "initial", SHAPE), first)


def test_every_part_of_the_key_counts() -> None:
    keys = [
        ("a", 0, "initial", None),
        ("b", 0, "initial", None),
        ("a", 1, "initial", None),
        ("a", 0, "replicate", None),
        ("a", 0, "initial", 0),
        ("a", 0, "initial", 1),
    ]
    draws = [keyed_noise(p, s, purpose, SHAPE, step=step) for p, s, purpose, step in keys]
    for a, b in itertools.combinations(draws, 2):
        assert abs(np.corrcoef(a.flatten(), b.flatten())[0, 1]) < 0.12


def test_standard_normal() -> None:
    values = torch.cat([keyed_noise(str(i), 0, "initial", SHAPE).flatten() for i in range(40)])
    assert stats.kstest(values.numpy(), "norm").pvalue > 1e-3


def test_golden_value() -> None:
    """The stream is part of every recording's key: it may never change unnoticed."""
    assert keyed_noise("a", 0, "initial", (3,)).tolist() == GOLDEN


def test_seeds_of_generators() -> None:
    """What every generator of torch takes, far from one another, and never changed unnoticed."""
    seeds = [generator_seed(prompt, seed) for prompt in ("a", "b", "c-2") for seed in range(400)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert stats.kstest(np.array(seeds) / 2**32, "uniform").pvalue > 1e-3
    key = hashlib.sha256(b'["a", 0, "generator"]').digest()
    assert generator_seed("a", 0) == int.from_bytes(key[:4], "little")
    for a, b in itertools.pairwise(seeds[:20]):
        drawn = [torch.randn(4096, generator=torch.Generator().manual_seed(x)) for x in (a, b)]
        assert abs(torch.corrcoef(torch.stack(drawn))[0, 1]) < 0.08


GOLDEN = [0.6804565191268921, 0.3255171775817871, -1.3302932977676392]
