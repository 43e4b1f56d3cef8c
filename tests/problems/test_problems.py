"""Problems of recordings and of live pipelines, against runs of the same plans."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from tests.additivity.synthetic import recording as synthetic
from tests.toy import LEVELS, by_hand, toy, toy_banks, toy_call
from tmpdiff_bench.allocators import AllocationProblem, gram, knapsack, random_search, uniform
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.problems import (
    LiveError,
    RecordedError,
    RelativeCosts,
    from_recording,
    live_problem,
)
from tmpdiff_bench.problems.costs import costs_of_run
from tmpdiff_bench.trajectory import PrefixEngine, Recording

COSTS = RelativeCosts("assumed", {"fp32": 1.0, "w8a8": 0.5, "w4a4": 0.25})
STEPS = 4
CALL = toy_call(["a red circle", "a red circle", "two stars", "two stars"], STEPS)


def engine() -> PrefixEngine:
    pipe = toy()
    return PrefixEngine(pipe, toy_banks(LEVELS)(pipe), CALL, max_batch=3)


def recording(nfe: int = 1, **changes: Any) -> Recording:
    """With a count of network evaluations, which the synthetic ones lack."""
    made = synthetic(**changes)
    made.manifest["nfe"] = {"per_step": [nfe] * made.steps}
    return made


@pytest.fixture
def task() -> AllocationProblem:
    return live_problem(engine(), COSTS, speedup=2, record_singles=True)


def deviation(plan: PrecisionPlan) -> torch.Tensor:
    """Of the final latents (n, ...), by loops by hand."""
    reference = by_hand(LEVELS, ["fp32"] * STEPS, CALL)
    return (by_hand(LEVELS, plan.levels, CALL) - reference).double()


def test_live_errors_are_those_of_plain_runs(task: AllocationProblem) -> None:
    plan = PrecisionPlan(("w4a4", "fp32", "w8a8", "w4a4"))
    square = deviation(plan).square().flatten(1).mean(1)
    assert task.error(plan) == pytest.approx(float(square.sqrt().mean()), rel=1e-4)
    assert task.error(PrecisionPlan.uniform("fp32", STEPS)) == 0


def test_live_singles_are_measured_singles(task: AllocationProblem) -> None:
    assert task.single_errors is not None
    assert task.gram is not None
    deviations = []
    for level in (1, 2):
        for step in range(STEPS):
            plan = PrecisionPlan.single("fp32", task.levels[level], step, STEPS)
            assert task.single_errors[step, level] == pytest.approx(task.error(plan), rel=1e-6)
            deviations.append(deviation(plan).flatten())
    cells = torch.stack(deviations)
    products = (cells @ cells.T / cells.shape[1]).numpy()
    assert task.gram == pytest.approx(products, rel=1e-2, abs=1e-8)
    assert gram(task).error_source == "measured"


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_engine_spends_what_the_account_says(guidance: float) -> None:
    pipe = toy()
    call = toy_call(["a", "two stars"], STEPS, guidance_scale=guidance)
    task = live_problem(PrefixEngine(pipe, toy_banks(LEVELS)(pipe), call), COSTS, speedup=2)
    assert task.nfe_per_step == (1 if guidance == 1 else 2,) * STEPS
    found = random_search(task)
    assert isinstance(task.error, LiveError)
    assert task.error.engine.nfe == found.nfe * len(call)


def test_inner_products_are_only_given_in_the_units_of_errors() -> None:
    squares = live_problem(engine(), COSTS, speedup=2, metric="latent_mse", record_singles=True)
    assert squares.single_errors is not None
    for task in (squares, from_recording(recording(), COSTS, speedup=2, metric="latent_mse")):
        assert task.gram is None
        with pytest.raises(UsageError, match="of latent_rmse give them"):
            gram(task)
        assert knapsack(task).error > 0


def test_a_predicted_mean_square_is_the_form_itself() -> None:
    made = recording()
    plan = PrecisionPlan.parse("w4a4 w8a8 fp32 w4a4 w8a8 fp32")
    task = from_recording(made, COSTS, speedup=2)
    square = task.predicted_square(task.choice(plan))
    assert RecordedError(made, "latent_mse")(plan) == pytest.approx(square)
    assert RecordedError(made, "latent_rmse")(plan) == pytest.approx(math.sqrt(square))


@pytest.mark.parametrize("nfe", [1, 2])
def test_network_evaluations_are_those_that_the_recorder_counted(nfe: int) -> None:
    assert from_recording(recording(nfe), COSTS, speedup=2).nfe_per_step == (nfe,) * 6


def test_steps_that_no_run_comes_to_cost_nothing() -> None:
    costs = costs_of_run(COSTS, ["fp32", "w4a4"], [0, 0, 2, 2])
    assert costs.tolist() == [[0, 0], [0, 0], [1, 0.25], [1, 0.25]]


def test_plans_that_are_not_the_recording_s() -> None:
    error = RecordedError(recording(), "latent_rmse")
    with pytest.raises(UsageError, match=r"fp32\*3 w8a8 has 4 steps, the recording 6"):
        error(PrecisionPlan.parse("fp32*3 w8a8"))
    with pytest.raises(UsageError, match="unknown level of the recording 'w8a9'"):
        error(PrecisionPlan.parse("fp32*5 w8a9"))


def test_unknown_metrics_and_levels_without_a_cost() -> None:
    with pytest.raises(UsageError, match="did you mean 'latent_rmse'"):
        LiveError(engine(), metric="rmse")
    with pytest.raises(UsageError, match="'assumed': 'bf16'"):
        COSTS.step_costs(["bf16"], 4)


def test_a_recording_gives_its_errors_and_predicts_the_others() -> None:
    made = recording()
    task = from_recording(made, COSTS, speedup=2)
    table = made.table[made.table["metric"] == "latent_rmse"]
    for plan in made.plans:
        expected = table[table["plan"] == str(plan)]["value"].mean()
        assert task.error(plan) == pytest.approx(expected)
        # these vectors superpose, so the prediction is the root of the mean square
        square = np.square(made.joint[made.plans.index(plan)], dtype=float).mean()
        assert task.predicted_square(task.choice(plan)) == pytest.approx(square, rel=1e-5)
    recorded = uniform(task)
    assert (recorded.error_source, str(recorded.plan)) == ("measured", "w8a8*6")
    other = gram(task)
    if other.plan not in made.plans:
        assert other.error_source == "predicted"
        assert other.error == pytest.approx(other.predicted_error)
    assert knapsack(task).evaluations == 13


def test_a_metric_of_images_is_only_looked_up() -> None:
    made = recording()
    task = from_recording(made, COSTS, speedup=2, metric="one_minus_ssim")
    assert task.gram is None
    assert task.error(made.plans[0]) > 0
    with pytest.raises(UsageError, match="holds no one_minus_ssim of plan w4a4 w8a8"):
        task.error(PrecisionPlan.parse("w4a4 w8a8 fp32 w4a4 w8a8 fp32"))
    with pytest.raises(UsageError, match="unknown metric of the recording"):
        from_recording(made, COSTS, speedup=2, metric="beauty")
