"""H1, H1m, H2 on vectors of known geometry, and the coverage of the bootstrap."""

from __future__ import annotations

import math
from dataclasses import astuple

import numpy as np
import pytest
from scipy.stats import kendalltau

from tmpdiff_bench.additivity.hypotheses import (
    Overlap,
    PromptBootstrap,
    context_ratio,
    inner_products,
    mean_of,
    off_diagonal_share,
    rank_within,
    systematic_share,
)

PROMPTS = [f"prompt{i // 2}" for i in range(24)]
N = len(PROMPTS)


@pytest.fixture
def bootstrap() -> PromptBootstrap:
    return PromptBootstrap.of(PROMPTS, alpha=0.05, seed=0)


def normal(*shape: int, rng: int = 0) -> np.ndarray:
    return np.random.default_rng(rng).normal(size=shape)


def test_inner_products_are_per_element_and_per_sample():
    deviations = normal(3, N, 50)
    products = inner_products(deviations)
    assert products.shape == (N, 3, 3)
    assert products[5, 0, 2] == pytest.approx(np.mean(deviations[0, 5] * deviations[2, 5]))


def test_superposed_errors_have_no_residual(bootstrap):
    deviations = normal(4, N, 50).astype(np.float32)
    membership = np.array([[1, 1, 0, 0], [1, 0, 1, 1.0]])
    joint = np.tensordot(membership, deviations, axes=1).astype(np.float32)
    overlap = Overlap.of(joint, deviations, membership)
    assert overlap.residual.max() < 2e-7
    assert bootstrap.interval(mean_of(overlap.cosine)).low == pytest.approx(1)
    ratio = bootstrap.interval(overlap.mean_square_ratio)
    np.testing.assert_allclose(astuple(ratio), 1, rtol=1e-6)


def test_redrawn_noise_superposes_in_mean_square_only(bootstrap):
    # deviations are common + noise of equal power; the joint run meets another draw of the noise
    common = normal(4, N, 2000)
    deviations = common + normal(4, N, 2000, rng=1)
    joint = (common + normal(4, N, 2000, rng=2)).sum(axis=0)[None]
    overlap = Overlap.of(joint, deviations, np.ones((1, 4)))
    assert overlap.cosine.mean() == pytest.approx(0.5, abs=0.02)
    assert overlap.residual.mean() == pytest.approx(1.0, abs=0.02)
    assert bootstrap.verdict(mean_of(overlap.residual), -math.inf, 0.1) == "refuted"
    assert bootstrap.verdict(overlap.mean_square_ratio, 1 / 1.1**2, 1.1**2) == "supported"


def test_vanishing_errors_are_told():
    joint = normal(2, N, 5)
    joint[1, 3] = 0
    overlap = Overlap.of(joint, normal(2, N, 5, rng=1), np.eye(2))
    assert overlap.nonzero.tolist() == [True, False]
    assert np.isfinite(overlap.only(overlap.nonzero).residual).all()


@pytest.mark.parametrize(
    ("signs", "share"), [([1, 1, 1, 1], 0.75), ([1, 1, 1, -1], 0.0), ([1, 1, 0, 0], 0.5)]
)
def test_off_diagonal_share_of_parallel_deviations(bootstrap, signs, share):
    deviations = np.array(signs)[:, None, None] * normal(1, N, 50)
    found = bootstrap.interval(off_diagonal_share(inner_products(deviations)))
    np.testing.assert_allclose(astuple(found), share, atol=1e-12)


def test_off_diagonal_share_of_orthogonal_deviations(bootstrap):
    deviations = np.repeat(np.eye(4), 10, axis=1)[:, None] * normal(1, N, 40)
    found = bootstrap.interval(off_diagonal_share(inner_products(deviations)))
    np.testing.assert_allclose(astuple(found), 0, atol=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_systematic_share_is_recovered_from_replicates(bootstrap, share):
    common = math.sqrt(share) * normal(4, N, 1000)
    once, again = (common + math.sqrt(1 - share) * normal(4, N, 1000, rng=r) for r in (1, 2))
    within, within_again = inner_products(once), inner_products(again)
    across = inner_products(once, again)
    found = bootstrap.interval(systematic_share(within, within_again, across))
    assert found.estimate == pytest.approx(share, abs=0.02)
    assert np.trace(within.mean(0)) == pytest.approx(4, abs=0.2)
    assert np.trace(across.mean(0)) == pytest.approx(4 * share, abs=0.1)


def test_context_ratio_is_one_for_additive_metrics(bootstrap):
    singles = np.random.default_rng(0).uniform(1, 2, (5, N))
    uniform = singles.sum(axis=0)
    additive = bootstrap.interval(context_ratio(uniform, uniform - singles, singles))
    np.testing.assert_allclose(astuple(additive), 1)
    squares = np.sqrt((singles**2).sum(axis=0) - singles**2)
    root = bootstrap.interval(context_ratio(np.sqrt((singles**2).sum(axis=0)), squares, singles))
    assert root.high < 0.5


def test_intervals_cover_as_they_say():
    rng = np.random.default_rng(0)
    prompts = [i // 2 for i in range(20)]
    bootstrap = PromptBootstrap.of(prompts, alpha=0.05, seed=0)
    covered = []
    for _ in range(300):
        values = 1 + np.repeat(rng.normal(size=10), 2) + rng.normal(size=20)
        found = bootstrap.interval(mean_of(values))
        covered.append(found.low <= 1 <= found.high)
    assert 0.93 <= np.mean(covered) <= 0.97


def test_one_prompt_has_no_interval_and_no_verdict():
    bootstrap = PromptBootstrap.of(["only"] * 4, alpha=0.05, seed=0)
    found = bootstrap.interval(mean_of(np.arange(4.0)))
    assert found.estimate == 1.5
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert bootstrap.verdict(mean_of(np.arange(4.0)), 0, 3) == "undecided"


def test_verdict_of_an_interval(bootstrap):
    values = mean_of(normal(N))
    found = bootstrap.interval(values)
    assert bootstrap.verdict(values, -2, 2) == "supported"
    assert bootstrap.verdict(values, found.high + 0.1, 9) == "refuted"
    assert bootstrap.verdict(values, found.estimate, 9) == "undecided"


def test_rank_within_one_stratum_is_kendalls_tau():
    predicted, joint = normal(6, 3), normal(6, 3, rng=1)
    agreement, pairs = rank_within(predicted, joint, np.ones(6, dtype=np.int64))
    assert pairs == 15
    expected = [kendalltau(predicted[:, i], joint[:, i]).statistic for i in range(3)]
    np.testing.assert_allclose(agreement, expected)


def test_rank_within_ignores_the_order_between_strata():
    strata = np.repeat([2, 9], 3)
    joint = normal(6, 3)
    reversed_within = -joint + 100 * strata[:, None]
    agreement, pairs = rank_within(reversed_within, joint, strata)
    assert pairs == 6
    assert agreement.tolist() == [-1] * 3
    alone, none = rank_within(joint, joint, np.arange(6))
    assert none == 0
    assert np.isnan(alone).all()
