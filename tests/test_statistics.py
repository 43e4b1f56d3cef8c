"""Statistics against independent implementations, and their rates of error by simulation."""

from __future__ import annotations

import gc
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.statistics import holm, mean_ranks, paired_interval, sign_flip


def every_pattern(x: np.ndarray) -> float:
    """Share of all patterns of signs whose mean is as far from 0."""
    means = [abs(np.mean(x * signs)) for signs in itertools.product((1, -1), repeat=len(x))]
    return float(np.mean(np.array(means) >= abs(x.mean()) * (1 - 1e-12)))


@pytest.mark.parametrize("n", [3, 8, 12])
def test_sign_flips_are_all_patterns_of_signs(n: int) -> None:
    x = np.random.default_rng(n).normal(0.4, 1, n)
    assert sign_flip(x) == pytest.approx(every_pattern(x), rel=1e-12)


def test_random_sign_flips_are_near_all_of_them() -> None:
    x = np.random.default_rng(0).normal(0.25, 1, 16)
    assert sign_flip(x, rng=1) == pytest.approx(every_pattern(x), abs=0.015)


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=10))
def test_differences_of_one_sign_have_the_least_p(values: list[float]) -> None:
    assert sign_flip(values) == pytest.approx(2.0 ** (1 - len(values)))
    assert sign_flip([-v for v in values]) == sign_flip(values)


def test_sign_flips_reject_a_true_null_at_their_rate() -> None:
    rng = np.random.default_rng(2)
    # heavy tails and symmetric, which is all that the null says
    rejected = [sign_flip(rng.standard_t(3, 10)) <= 0.05 for _ in range(600)]
    assert 0.03 <= np.mean(rejected) <= 0.07


def test_no_difference_at_all_has_p_1() -> None:
    assert sign_flip(np.zeros(6)) == 1


@pytest.mark.parametrize(("n", "spread"), [(8, "normal"), (24, "skewed")])
def test_intervals_hold_the_mean_at_their_rate(n: int, spread: str) -> None:
    rng = np.random.default_rng(3)
    held = []
    for _ in range(300):
        x = rng.normal(size=n) if spread == "normal" else rng.gamma(4, size=n) - 4
        found = paired_interval(x, resamples=1999, rng=rng)
        held.append(found.low <= 0 <= found.high)
    assert 0.92 <= np.mean(held) <= 0.98


def test_percentile_intervals_would_be_too_short() -> None:
    """Why means are studentised."""
    rng, held = np.random.default_rng(3), []
    for _ in range(300):
        x = rng.normal(size=8)
        means = x[rng.integers(8, size=(2000, 8))].mean(axis=1)
        low, high = np.quantile(means, [0.025, 0.975])
        held.append(low <= 0 <= high)
    assert np.mean(held) < 0.92


@given(st.floats(-5, 5), st.floats(0.1, 10))
def test_intervals_move_and_stretch_with_the_differences(shift: float, scale: float) -> None:
    x = np.random.default_rng(0).normal(size=9)
    a, b = paired_interval(x), paired_interval(shift + scale * x)
    assert [b.low, b.estimate, b.high] == pytest.approx(
        [shift + scale * v for v in (a.low, a.estimate, a.high)], abs=1e-9
    )


def test_what_cannot_be_resampled_is_said() -> None:
    assert np.isnan(paired_interval([1.0, 2.0]).low)
    equal = paired_interval([0.5] * 6)
    assert (equal.low, equal.high) == (0.5, 0.5)
    for bad in ([], [[1.0]], [np.nan]):
        with pytest.raises(UsageError, match="finite numbers, one a prompt"):
            paired_interval(bad)


@pytest.mark.parametrize("seed", range(4))
def test_holm_is_its_definition(seed: int) -> None:
    p = np.random.default_rng(seed).beta(0.3, 1, size=3 * seed + 1)
    order = np.argsort(p)
    steps = np.minimum(1, p[order] * np.arange(len(p), 0, -1))
    assert holm(p)[order] == pytest.approx(np.maximum.accumulate(steps), abs=1e-12)
    assert gc.get_freeze_count() == 0


def test_holm_leaves_out_what_was_not_tested() -> None:
    found = holm([0.01, float("nan"), 0.04])
    assert found[0] == 0.02
    assert found[2] == 0.04
    assert np.isnan(found[1])


def test_critical_differences_are_those_of_demsars_table() -> None:
    # q of the Nemenyi test at 5 % for k methods (Demsar 2006, table 5)
    for k, q in ((3, 2.343), (5, 2.728), (10, 3.164)):
        blocks = 20
        errors = np.random.default_rng(k).normal(size=(blocks, k))
        found = mean_ranks(errors, [str(i) for i in range(k)])
        assert found.critical_difference == pytest.approx(
            q * np.sqrt(k * (k + 1) / (6 * blocks)), rel=1e-3
        )


def test_nemenyi_tells_like_methods_apart_at_its_rate() -> None:
    rng, told = np.random.default_rng(5), []
    for _ in range(500):
        found = mean_ranks(rng.normal(size=(15, 5)), list("abcde"))
        told.append(np.ptp(found.mean_ranks) > found.critical_difference)
    assert 0.02 <= np.mean(told) <= 0.08


def test_ranks_of_ties_and_cliques() -> None:
    errors = [[1.0, 1.0, 3.0, 9.0]] * 30
    found = mean_ranks(errors, ["a", "b", "c", "d"])
    assert found.mean_ranks == (1.5, 1.5, 3.0, 4.0)
    assert found.cliques == [("a", "b")]
    assert found.friedman_p < 1e-9
    assert mean_ranks(np.ones((4, 3)), list("abc")).friedman_p == 1
    with pytest.raises(UsageError, match="3 and 2 are the least"):
        mean_ranks([[1.0, 2.0]], ["a", "b"])
