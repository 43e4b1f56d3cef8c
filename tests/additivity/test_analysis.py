"""The whole analysis on recordings of known truth."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

from tests.additivity.synthetic import Vectors, recording, superpose
from tmpdiff_bench.additivity import AdditivityReport
from tmpdiff_bench.additivity.analysis import analyse
from tmpdiff_bench.additivity.predictors import PREDICTORS
from tmpdiff_bench.additivity.records import Score
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.statistics import Interval
from tmpdiff_bench.trajectory.recording import Recording

METRICS = ["latent_rmse", "latent_mse", "one_minus_ssim"]
STEPS, SAMPLES, SIZE = 6, 16, 64


def found(report: AdditivityReport, predictor: str, metric: str = "latent_rmse") -> list[Score]:
    return [s for s in report.scores if (s.predictor, s.metric) == (predictor, metric)]


def changed(made: Recording, **changes: Any) -> Recording:
    return cast(Recording, SimpleNamespace(**{**vars(made), **changes}))


def parallel(rng: int = 0) -> Vectors:
    """Deviations of one direction per sample, so that norms add; shape (2 * STEPS, n, SIZE)."""
    generator = np.random.default_rng(rng)
    direction = generator.normal(size=(SAMPLES, SIZE))
    direction /= np.sqrt(np.mean(direction**2, axis=1, keepdims=True))
    scale = np.geomspace(0.05, 0.15, STEPS)[:, None] * generator.uniform(0.9, 1.1, SAMPLES)
    return np.concatenate([scale, 3 * scale])[:, :, None] * direction


@pytest.fixture(scope="module")
def linear() -> AdditivityReport:
    generator = np.random.default_rng(0)
    deviations = generator.normal(size=(2 * STEPS, SAMPLES, SIZE))
    return analyse(recording(deviations=deviations, replicates=deviations))


def test_superposition_of_a_linear_toy(linear):
    assert [record.level for record in linear.superposition] == ["w8a8", "w4a4"]
    for record in linear.superposition:
        assert record.residual.high < 1e-6
        assert record.cosine.low == pytest.approx(1)
        assert record.residual_verdict == record.mean_square_verdict == "supported"
        assert record.systematic_share is not None
        assert record.systematic_share.low == pytest.approx(1)
        assert record.context_cosine is not None
        assert record.context_cosine.low == pytest.approx(1)
        plans = [PrecisionPlan.parse(plan) for plan in record.plans]
        assert record.low_steps.tolist() == [STEPS - plan.count("fp32") for plan in plans]
        assert len(record.plans) == len(record.residual_by_plan) == record.clusters[1] == 15
    for matrix in linear.grams:
        assert matrix.matrix.shape == (STEPS, STEPS)
        np.testing.assert_allclose(matrix.matrix, matrix.systematic, rtol=1e-6)


def test_gram_is_exact_on_a_linear_toy(linear):
    for metric in ("latent_rmse", "latent_mse"):
        for score in found(linear, "gram", metric):
            assert score.verdict == "supported"
            assert score.test is not None
            assert score.test.r2_identity == pytest.approx(1, abs=1e-10)
            assert (score.rank_within is None) == (score.rank_pairs == 0)
            assert score.rank_within in (None, Interval(1, 1, 1))
    for score in found(linear, "gram", "one_minus_ssim"):
        assert (score.verdict, score.test) == ("not defined", None)
        assert score.reason == "one_minus_ssim has no inner products: latent metrics only"
    for score in found(linear, "sum"):
        assert score.verdict == "refuted"


def test_plans_are_split_as_the_design_says(linear):
    counts = {
        (s.level, s.predictor): (s.training_plans, s.held_out_plans)
        for s in linear.scores
        if s.metric == "latent_rmse"
    }
    assert counts["w4a4", "gram"] == (0, 13)  # nothing is fitted, so that all plans are held out
    assert counts["w4a4", "pairwise"] == (9, 4)
    assert counts["mixed", "gram"] == (0, 4)
    assert counts["mixed", "pairwise"] == (18, 4)
    for record in linear.predictions:
        assert "complement" not in record.kinds
        assert record.predicted.shape == record.joint.shape == (len(record.plans), SAMPLES)
    assert len(linear.predictions) == len([s for s in linear.scores if s.test])


def test_root_sum_squares_is_exact_on_an_orthogonal_toy():
    blocks = np.zeros((2 * STEPS, SAMPLES, 2 * STEPS * 4))
    for cell in range(2 * STEPS):
        values = np.random.default_rng(cell).normal(size=(SAMPLES, 4))
        blocks[cell, :, 4 * cell : 4 * cell + 4] = values
    report = analyse(recording(deviations=blocks), metrics=["latent_rmse"])
    for name in ("root_sum_squares", "gram"):
        for score in found(report, name):
            assert score.verdict == "supported"
            assert score.test is not None
            assert score.test.r2_identity == pytest.approx(1, abs=1e-10)
    for score in found(report, "power_sum"):
        assert score.parameters["exponent"].estimate == pytest.approx(2, abs=1e-3)
    for record in report.superposition:
        assert record.off_diagonal_share.estimate == pytest.approx(0, abs=1e-9)
        assert record.orthogonality_verdict == "supported"


def test_sum_is_exact_on_a_parallel_toy():
    report = analyse(recording(deviations=parallel()), metrics=["latent_rmse"])
    for name in ("sum", "gram", "affine_sum", "pairwise"):
        for score in found(report, name):
            assert score.verdict == "supported", (name, score.level)
    for record in report.superposition:
        assert record.orthogonality_verdict == "refuted"
    assert {check.verdict for check in report.design_free} == {"supported"}


def test_known_interaction_is_found_by_pairwise_only():
    def combine(deviations: Vectors, used: Vectors, plan: int) -> Vectors:
        extra = np.zeros_like(deviations[0])
        for first in (0, STEPS):  # steps 1 and 4 low together, at either level
            pair = deviations[[first + 1, first + 4]]
            both = used[first + 1] * used[first + 4]
            extra += both * 2 * np.sign(pair[0]) * np.sqrt(np.prod(np.abs(pair), axis=0))
        return superpose(deviations, used, plan) + extra

    made = recording(combine=combine, deviations=parallel(), per_level=40, mixed=0)
    report = analyse(made, metrics=["latent_rmse"])
    for score in found(report, "pairwise"):
        assert score.verdict == "supported"
        assert score.r2_common > 0.99
    for name in ("sum", "gram", "root_sum_squares"):
        for score in found(report, name):
            assert score.verdict != "supported"
            assert score.r2_common < 0.9
    for record in report.superposition:
        assert record.residual_by_plan.min() < 1e-6  # plans without the pair superpose
        assert record.residual_by_plan.max() > 0.2


def test_redrawn_noise_is_told_from_the_systematic_part():
    generator = np.random.default_rng(0)
    common = generator.normal(size=(2 * STEPS, SAMPLES, 400))

    def noise() -> Vectors:
        return 2 * generator.normal(size=common.shape)

    def combine(deviations: Vectors, used: Vectors, plan: int) -> Vectors:
        return np.tensordot(used, common + noise(), axes=1)

    made = recording(combine=combine, deviations=common + noise(), replicates=common + noise())
    report = analyse(made, metrics=["latent_rmse"])
    for record in report.superposition:
        assert record.residual_verdict == "refuted"
        assert record.mean_square_verdict == "supported"
        assert record.systematic_share is not None
        assert record.systematic_share.low < 0.2 < record.systematic_share.high
    for matrix in report.grams:
        assert matrix.systematic is not None
        assert np.trace(matrix.systematic) == pytest.approx(np.trace(matrix.matrix) / 5, rel=0.1)
    assert {score.verdict for score in found(report, "gram")} == {"supported"}


def test_same_seed_same_report_and_scores_stand_alone(linear):
    generator = np.random.default_rng(0)
    deviations = generator.normal(size=(2 * STEPS, SAMPLES, SIZE))
    made = recording(deviations=deviations, replicates=deviations)
    assert analyse(made).to_json() == linear.to_json()
    alone = analyse(made, metrics=["latent_mse"], predictors=["sum"])
    assert [s.test for s in alone.scores] == [s.test for s in found(linear, "sum", "latent_mse")]
    assert analyse(made, rng=1).to_json() != linear.to_json()


def test_json_is_finite_and_says_what_is_lost(linear):
    text = linear.to_json()

    def refuse(name: str) -> None:
        raise AssertionError(name)

    data = json.loads(text, parse_constant=refuse)
    assert data["rule"] == linear.rule
    assert data["predictions"][0]["joint"] == pytest.approx(
        linear.predictions[0].joint.mean(axis=1).tolist()
    )
    undefined = [s for s in linear.scores if s.test is None]
    assert (
        f"report.scores.wald_p_holm is null in {len(undefined)} place(s): the number is not finite"
    ) in data["warnings"]


def test_tables(linear):
    scores = linear.scores_frame()
    assert len(scores) == 3 * 3 * len(PREDICTORS)
    assert {"verdict", "floor_ratio", "clusters", "ratio_low", "ratio_small"} <= set(scores)
    assert scores.columns.is_unique
    assert set(scores["metric"]) == set(METRICS)
    assert linear.superposition_frame()["clusters"].tolist() == [8, 8]
    assert set(linear.design_free_frame()["metric"]) == set(METRICS)
    sensitivity = linear.sensitivity_frame()
    assert len(sensitivity) == 2 * 3 * STEPS
    assert (sensitivity["low"] <= sensitivity["error"]).all()
    assert (sensitivity["error"] <= sensitivity["high"]).all()


def test_holm_adjusts_over_the_metrics_of_a_predictor(linear):
    for score in linear.scores:
        if score.test:
            family = [
                s.test.wald_p
                for s in linear.scores
                if (s.level, s.predictor) == (score.level, score.predictor) and s.test
            ]
            if score.test.wald_p == min(family):
                assert score.wald_p_holm == pytest.approx(min(1, len(family) * min(family)))
            assert score.wald_p_holm >= score.test.wald_p


def test_errors_near_the_floor_are_flagged():
    made = recording()
    floor = np.full(SAMPLES, 0.0026, dtype=np.float32)
    report = analyse(changed(made, floor=floor), metrics=["latent_rmse"], predictors=["gram"])
    sensitivity = report.sensitivity[0]
    assert sensitivity.flagged.tolist() == [True, True] + [False] * 4
    assert (
        "w8a8: single errors below 10x the numerical floor at steps 0, 1: not to be interpreted"
    ) in report.warnings
    assert report.scores[0].floor_ratio == pytest.approx(sensitivity.floor_ratio.min())
    silent = analyse(changed(made, floor=0 * floor), metrics=["latent_rmse"], predictors=["gram"])
    assert "the numerical floor is 0: floor ratios are infinite" in silent.warnings
    assert math.isinf(silent.scores[0].floor_ratio)
    assert not silent.sensitivity[0].flagged.any()


def test_small_recordings_say_what_they_lack():
    report = analyse(recording(steps=2, prompts=1, seeds=2, mixed=0), metrics=["latent_rmse"])
    assert {score.verdict for score in report.scores} == {"not defined"}
    gram = found(report, "gram")[0]
    assert gram.reason == (
        "clustering by prompt and plan needs at least 2 of each, got 1 prompt(s) and 1 plan(s)"
    )
    assert (
        "w4a4: no design-free check, which takes the all-low plan, plans with one high step, and "
        "single errors above zero"
    ) in report.warnings
    assert (
        "w4a4: power_sum, affine_sum, pairwise scored on only 0 held-out plans: wide intervals"
    ) in report.warnings
    assert report.superposition[0].mean_square_verdict == "undecided"
    json.loads(report.to_json())


def test_zero_errors_are_not_averaged_in():
    made = recording(combine=lambda d, used, plan: 0 * superpose(d, used, plan), mixed=0)
    report = analyse(made, metrics=["latent_rmse"])
    assert report.superposition == ()
    assert {score.verdict for score in report.scores} == {"not defined"}
    assert "w8a8: no test of superposition, for want of a joint plan with an error" in (
        report.warnings
    )


def test_two_levels_have_no_mixed_plans():
    report = analyse(recording(levels=("fp32", "w4a4")), metrics=["latent_rmse"])
    assert {score.level for score in report.scores} == {"w4a4"}


def spoiled(made: Recording, change: str) -> pd.DataFrame:
    table = made.table
    row = (table["metric"] == "latent_mse") & (table["plan"] == "w8a8*6")
    first = table.index[row][0]
    if change == "missing":
        return table.drop(index=first)
    if change == "twice":
        return pd.concat([table, table.loc[[first]]], ignore_index=True)
    table = table.copy()
    if change == "nan":
        table.loc[first, "value"] = math.nan
    else:
        table.loc[(table["kind"] == "single") & (table["metric"] == "latent_mse"), "value"] *= 1.01
    return table


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "missing",
            "the table has no finite latent_mse in 1 of 736 places, the first for plan 'w8a8*6', "
            "prompt 'prompt0', seed 0",
        ),
        (
            "nan",
            "the table has no finite latent_mse in 1 of 736 places, the first for plan 'w8a8*6', "
            "prompt 'prompt0', seed 0",
        ),
        ("twice", "the table has two values of latent_mse for one plan, prompt and seed"),
        ("scaled", "the table's latent_mse is not that of the stored latents"),
    ],
)
def test_bad_tables(change, message):
    made = recording()
    with pytest.raises(UsageError) as caught:
        analyse(changed(made, table=spoiled(made, change)))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"metrics": ["latent_rsme"]},
            "unknown metric 'latent_rsme': did you mean 'latent_rmse'? known: latent_mse, "
            "latent_rmse, one_minus_ssim",
        ),
        (
            {"predictors": ["grm"]},
            "unknown predictor 'grm': did you mean 'gram'? known: affine_sum, gram, pairwise, "
            "power_sum, root_sum_squares, sum",
        ),
        ({"metrics": []}, "metrics must be a non-empty list of names, got []"),
        ({"predictors": "sum"}, "predictors must be a non-empty list of names, got 'sum'"),
        ({"margin": -0.1}, "the margin must be a positive number such as 0.1 (10 %), got -0.1"),
        ({"alpha": 0.0}, "alpha must be between 0 and 0.5, got 0.0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UsageError) as caught:
        analyse(recording(), **options)
    assert str(caught.value) == message


def test_no_joint_plan():
    with pytest.raises(UsageError, match="the recording has no joint plan"):
        analyse(changed(recording(), plans=()))
