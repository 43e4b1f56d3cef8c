"""Predictors on errors that one of them makes exactly, or with known noise."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from tmpdiff_bench.additivity.hypotheses import inner_products
from tmpdiff_bench.additivity.predictors import (
    PARAMETER_FREE,
    PREDICTORS,
    NotDefinedError,
    SingleErrors,
    Training,
)
from tmpdiff_bench.additivity.records import Floats

STEPS, SAMPLES = 6, 12
PROMPTS = [i // 2 for i in range(SAMPLES)]
MASKS = np.array(
    [
        [s in mask for s in range(STEPS)]
        for k in (2, 3, 4, 5, 6)
        for mask in combinations(range(STEPS), k)
    ],
    dtype=np.float64,
)


def singles(rng: int = 0) -> Floats:
    generator = np.random.default_rng(rng)
    return np.geomspace(0.05, 0.3, STEPS)[:, None] * generator.uniform(0.8, 1.2, (STEPS, SAMPLES))


def of(values: Floats) -> SingleErrors:
    return SingleErrors("one_minus_ssim", values, None, squared=False)


def training(joint: Floats, masks: Floats = MASKS) -> Training:
    return Training(masks, joint, PROMPTS)


def power(values: Floats, exponent: float) -> Floats:
    return (MASKS @ values**exponent) ** (1 / exponent)


def test_parameter_free_ones_are_their_formulas():
    values = singles()
    idle = Training(MASKS[:0], np.empty((0, SAMPLES)), PROMPTS)
    found = PREDICTORS["sum"](of(values), idle).predict(MASKS)
    np.testing.assert_allclose(found, power(values, 1))
    found = PREDICTORS["root_sum_squares"](of(values), idle).predict(MASKS)
    np.testing.assert_allclose(found, power(values, 2))
    assert set(PREDICTORS) - PARAMETER_FREE == {"power_sum", "affine_sum", "pairwise"}


@pytest.mark.parametrize("squared", [False, True])
def test_gram_is_the_norm_of_the_sum_of_deviations(squared):
    deviations = np.random.default_rng(0).normal(size=(STEPS, SAMPLES, 40)) + 0.5
    products = inner_products(deviations)
    errors = SingleErrors("latent", np.ones((STEPS, SAMPLES)), products, squared)
    found = PREDICTORS["gram"](errors, training(np.ones((1, SAMPLES)), MASKS[:1])).predict(MASKS)
    squares = np.mean(np.tensordot(MASKS, deviations, axes=1) ** 2, axis=2)
    np.testing.assert_allclose(found, squares if squared else np.sqrt(squares))


def test_gram_of_cancelling_deviations_is_zero():
    deviations = np.random.default_rng(0).normal(size=(1, SAMPLES, 9)) * [[[0.1]], [[-0.1]]]
    errors = SingleErrors("latent_rmse", np.ones((2, SAMPLES)), inner_products(deviations), False)
    both = np.ones((1, 2))
    assert np.all(PREDICTORS["gram"](errors, training(both, both)).predict(both) == 0)


@pytest.mark.parametrize("exponent", [0.6, 1.0, 1.5, 2.0, 3.5])
def test_power_sum_finds_an_exact_exponent(exponent):
    values = singles()
    joint = power(values, exponent)
    fitted = PREDICTORS["power_sum"](of(values), training(joint[::3], MASKS[::3]))
    assert fitted.parameters["exponent"].estimate == pytest.approx(exponent, rel=1e-4)
    np.testing.assert_allclose(fitted.predict(MASKS), joint, rtol=1e-4)


def test_interval_of_the_exponent_covers_it():
    rng = np.random.default_rng(0)
    covered = []
    for repetition in range(100):
        values = singles(repetition)
        effects = rng.normal(0, 0.05, (len(MASKS), 1))
        effects = effects + np.repeat(rng.normal(0, 0.05, SAMPLES // 2), 2)
        effects = effects + rng.normal(0, 0.05, (len(MASKS), SAMPLES))
        rows = rng.permutation(len(MASKS))[:10]
        joint = (power(values, 1.5) * np.exp(effects))[rows]
        found = PREDICTORS["power_sum"](of(values), training(joint, MASKS[rows]))
        interval = found.parameters["exponent"]
        assert 1.1 < interval.estimate < 2.2
        covered.append(interval.low <= 1.5 <= interval.high)
    assert np.mean(covered) >= 0.88


def test_power_sum_with_a_single_error_of_zero():
    values = singles()
    values[2, 4] = 0
    joint = power(values, 1.5)
    fitted = PREDICTORS["power_sum"](of(values), training(joint))
    np.testing.assert_allclose(fitted.predict(MASKS), joint, rtol=1e-4)


def test_affine_sum_finds_a_line():
    values = singles()
    joint = 0.1 + 0.4 * power(values, 1)
    fitted = PREDICTORS["affine_sum"](of(values), training(joint[::3], MASKS[::3]))
    assert fitted.parameters["intercept"].estimate == pytest.approx(0.1)
    assert fitted.parameters["slope"].estimate == pytest.approx(0.4)
    np.testing.assert_allclose(fitted.predict(MASKS), joint)


@pytest.mark.parametrize("name", ["affine_sum", "pairwise"])
def test_predictions_stay_positive(name):
    values = singles()
    joint = np.maximum(2 * power(values, 1) - 0.9, 0.01)
    predict = PREDICTORS[name](of(values), training(joint[20:], MASKS[20:])).predict
    assert predict(np.eye(STEPS)).min() >= 0.005


def test_pairwise_finds_an_interaction():
    values = singles()
    joint = power(values, 1) + 1.7 * (MASKS[:, 1] * MASKS[:, 4])[:, None] * np.sqrt(
        values[1] * values[4]
    )
    fitted = PREDICTORS["pairwise"](of(values), training(joint[::2], MASKS[::2]))
    held = MASKS[1::2]
    errors = {
        name: np.max(
            np.abs(
                PREDICTORS[name](of(values), training(joint[::2], MASKS[::2])).predict(held)
                / joint[1::2]
                - 1
            )
        )
        for name in ("sum", "affine_sum", "pairwise")
    }
    assert errors["pairwise"] < 0.02
    assert errors["sum"] > 0.2
    assert errors["affine_sum"] > 0.1
    pair = np.zeros((2, STEPS))
    pair[0, [1, 4]] = 1
    pair[1, [0, 2]] = 1
    added = (fitted.predict(pair) - pair @ values) / np.sqrt(
        [values[1] * values[4], values[0] * values[2]]
    )
    np.testing.assert_allclose(added[0], 1.7, atol=0.1)
    np.testing.assert_allclose(added[1], 0.0, atol=0.1)


def test_pairwise_of_mean_squares_with_equal_cosines_is_gram():
    # cosine 0.3 between all deviations: |sum|^2 = sum of squares + 2 * 0.3 * products of norms
    values = singles() ** 2
    root = np.sqrt(values)
    joint = MASKS @ values + 0.3 * ((MASKS @ root) ** 2 - MASKS @ values)
    fitted = PREDICTORS["pairwise"](of(values), training(joint[:8], MASKS[:8]))
    assert fitted.parameters["interaction"].estimate == pytest.approx(0.6)
    np.testing.assert_allclose(fitted.predict(MASKS), joint, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "plans", "message"),
    [
        ("gram", 5, "one_minus_ssim has no inner products: latent metrics only"),
        ("power_sum", 1, "needs 2 training plans, got 1"),
        ("affine_sum", 0, "needs 2 training plans, got 0"),
        ("pairwise", 2, "needs 3 training plans, got 2"),
    ],
)
def test_not_defined(name, plans, message):
    with pytest.raises(NotDefinedError) as caught:
        PREDICTORS[name](of(singles()), training(np.ones((plans, SAMPLES)), MASKS[:plans]))
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["power_sum", "affine_sum", "pairwise"])
def test_not_defined_on_vanishing_errors(name):
    joint = power(singles(), 1)
    with pytest.raises(NotDefinedError, match="all single errors of a training plan are zero"):
        PREDICTORS[name](of(np.zeros((STEPS, SAMPLES))), training(joint))
    one = Training(MASKS, joint, [0] * SAMPLES)
    with pytest.raises(NotDefinedError, match="needs at least 2 prompts to be fitted"):
        PREDICTORS[name](of(singles()), one)
    joint[3, 2] = 0
    with pytest.raises(NotDefinedError, match="a joint error of the training plans is not pos"):
        PREDICTORS[name](of(singles()), training(joint))
