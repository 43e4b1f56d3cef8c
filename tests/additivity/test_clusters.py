"""The covariances against statsmodels and against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm

from tmpdiff_bench.additivity import clusters
from tmpdiff_bench.additivity.clusters import Clusters, least_squares, wild_wald_p
from tmpdiff_bench.additivity.records import Floats

ROWS = 90


@pytest.fixture
def unbalanced() -> tuple[Floats, Floats, Clusters, np.ndarray]:
    rng = np.random.default_rng(3)
    prompts, plans = rng.integers(0, 7, ROWS), rng.integers(0, 5, ROWS)
    x = rng.uniform(1, 4, ROWS) + 0.3 * plans
    y = x * (1 + 0.2 * rng.normal(size=7)[prompts] + 0.2 * rng.normal(size=5)[plans])
    design = np.column_stack([np.ones(ROWS), x])
    return design, y, Clusters.of(prompts.tolist(), plans.tolist()), np.stack([prompts, plans], 1)


def test_sandwich_is_that_of_statsmodels(unbalanced):
    design, y, of, groups = unbalanced
    fit = least_squares(design, y, of, jackknife=False)
    both = sm.OLS(y, design).fit(cov_type="cluster", cov_kwds={"groups": groups})
    np.testing.assert_allclose(fit.coefficients, both.params, rtol=1e-10)
    np.testing.assert_allclose(fit.two_way, both.cov_params(), rtol=1e-8)
    for covariance, column in ((fit.by_prompt, 0), (fit.by_plan, 1)):
        one = sm.OLS(y, design).fit(cov_type="cluster", cov_kwds={"groups": groups[:, column]})
        np.testing.assert_allclose(covariance, one.cov_params(), rtol=1e-8)


def test_jackknife_is_that_of_refits_without_one_cluster(unbalanced):
    design, y, of, _ = unbalanced
    fit = least_squares(design, y, of)
    covariances = []
    for codes, size in zip(of.codes, of.sizes, strict=True):
        refits = [sm.OLS(y[codes != g], design[codes != g]).fit().params for g in range(size)]
        moved = np.array(refits) - sm.OLS(y, design).fit().params
        covariances.append((size - 1) / size * moved.T @ moved)
    np.testing.assert_allclose(fit.by_prompt, covariances[0], rtol=1e-8)
    np.testing.assert_allclose(fit.by_plan, covariances[1], rtol=1e-8)
    np.testing.assert_allclose(fit.two_way, covariances[0] + covariances[1] - covariances[2])


def test_largest_variance_is_used_and_named(unbalanced):
    design, y, of, _ = unbalanced
    fit = least_squares(design, y, of)
    slope = np.array([0.0, 1.0])
    variances = {"two-way": fit.two_way, "prompt": fit.by_prompt, "plan": fit.by_plan}
    _, error, name = fit.estimate(slope)
    assert error**2 == pytest.approx(max(v[1, 1] for v in variances.values()))
    assert variances[name][1, 1] == pytest.approx(error**2)


def test_negative_two_way_variance_falls_back_to_one_way():
    # residuals that cancel within every prompt and, but for one row, within every plan
    prompts, plans = (axis.ravel() for axis in np.mgrid[:6, :6])
    response = 1 + 0.1 * (-1.0) ** (prompts + plans)
    response[0] += 0.1
    fit = least_squares(np.ones((36, 1)), response, Clusters.of(prompts, plans))
    assert fit.two_way[0, 0] < 0
    _, error, name = fit.estimate(np.ones(1))
    assert error > 0
    assert name in {"prompt", "plan"}


def test_redrawn_statistics_are_those_of_whole_draws(unbalanced):
    design, y, of, groups = unbalanced
    residuals = y - design[:, 1]
    parts = residuals[:, None] * (of.codes[1][:, None] == np.arange(5))
    weights = np.random.default_rng(0).choice([-1.0, 0.7, 1.2], (4, 5))
    redrawn = clusters._wald(design, parts, weights, design.T @ design, of)
    for draw, statistic in zip(weights @ parts.T, redrawn, strict=True):
        # the statistic of statsmodels, unless a one-way variance is larger
        fits = [
            sm.OLS(draw, design).fit(cov_type="cluster", cov_kwds={"groups": g}, use_t=False)
            for g in (groups, groups[:, 0], groups[:, 1])
        ]
        walds = [fit.wald_test(np.eye(2), scalar=True).statistic for fit in fits]
        assert statistic == pytest.approx(min(w for w in walds if w > 0), rel=1e-6)


def test_bootstrap_finds_a_shift_and_passes_noise(unbalanced):
    design, _, of, _ = unbalanced
    noise = np.random.default_rng(1).normal(size=ROWS)
    assert wild_wald_p(design, noise, of, np.random.default_rng(0)) > 0.05
    assert wild_wald_p(design, noise + 3, of, np.random.default_rng(0)) < 0.05
