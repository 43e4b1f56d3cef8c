"""Keyed noise: independent of batch and order, standard normal, distinct for every key."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from scipy import stats

from tmpdiff_bench.noise import initial_noise, keyed_noise

SHAPE = (4, 16, 16)


def test_independent_of_batch_and_order() -> None:
    samples = [("a", 0), ("b", 0), ("a", 1)]
    together = initial_noise(samples, SHAPE)
    for order in itertools.permutations(range(3)):
        assert torch.equal(initial_noise([samples[i] for i in order], SHAPE), together[list(order)])
    for i, sample in enumerate(samples):
        assert torch.equal(initial_noise([sample], SHAPE)[0], together[i])


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


GOLDEN = [0.6804565191268921, 0.3255171775817871, -1.3302932977676392]
