"""Problems of recordings and of live pipelines, against runs of the same plans."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from tests.additivity.synthetic import recording
from tests.trajectory.conftest import ToyBank, ToyPipeline
from tmpdiff_bench.allocators import AllocationProblem, gram, knapsack, random_search, uniform
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.noise import initial_noise
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.problems import (
    LiveError,
    RecordedError,
    RelativeCosts,
    from_recording,
    live,
    live_problem,
)
from tmpdiff_bench.trajectory import PrefixEngine, Workload

COSTS = RelativeCosts("assumed", {"fp32": 1.0, "w8a8": 0.5, "w4a4": 0.25})
LEVELS = {
    "fp32": lambda x: -x,
    "w8a8": lambda x: -x + 0.01 * torch.sin(9 * x),
    "w4a4": lambda x: -x + 0.1 * torch.cos(5 * x),
}
STEPS = 4
WORKLOAD = Workload(
    model="toy",
    weights="embedded",
    weights_digest="0" * 64,
    sampler={"class": "Euler"},
    steps=STEPS,
    guidance=1.0,
    resolution=(32, 32),
    prompts={"p0": "a red circle", "p1": "two stars"},
    seeds=(0, 1),
    dtype="float32",
    max_batch=3,
)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> AllocationProblem:
    monkeypatch.setattr(live, "LevelBank", lambda *_: ToyBank(LEVELS))
    return live_problem(
        ToyPipeline(STEPS), WORKLOAD, COSTS, levels=tuple(LEVELS), speedup=2, record_singles=True
    )


def test_live_errors_are_those_of_plain_runs(toy: AllocationProblem) -> None:
    pipeline = ToyPipeline(STEPS)
    texts = [WORKLOAD.prompts[prompt] for prompt, _ in WORKLOAD.samples]
    noise = initial_noise(WORKLOAD.samples, pipeline.latent_shape)
    engine = PrefixEngine(pipeline, ToyBank(LEVELS), pipeline.encode(texts), noise)
    plan = PrecisionPlan(("w4a4", "fp32", "w8a8", "w4a4"))
    finals = engine.evaluate([PrecisionPlan.uniform("fp32", STEPS), plan])
    square = (finals[1] - finals[0]).double().square().flatten(1).mean(1)
    assert toy.error(plan) == pytest.approx(float(square.sqrt().mean()), rel=1e-6)
    assert toy.error(PrecisionPlan.uniform("fp32", STEPS)) == 0


def test_live_singles_are_measured_singles(toy: AllocationProblem) -> None:
    assert toy.single_errors is not None
    assert toy.gram is not None
    for step in range(STEPS):
        for level in (1, 2):
            expected = toy.error(toy.single(step, level))
            assert toy.single_errors[step, level] == pytest.approx(expected, rel=1e-6)
            square = toy.gram[(level - 1) * STEPS + step, (level - 1) * STEPS + step]
            assert math.sqrt(square) >= expected * (1 - 1e-6)  # a root of means, a mean of roots
    assert gram(toy).error_source == "measured"


def test_the_engine_spends_what_the_account_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "LevelBank", lambda *_: ToyBank(LEVELS))
    task = live_problem(ToyPipeline(STEPS), WORKLOAD, COSTS, levels=tuple(LEVELS), speedup=2)
    found = random_search(task)
    assert isinstance(task.error, LiveError)
    assert task.error.engine.nfe == found.nfe * len(WORKLOAD.samples)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": STEPS + 1}, "the pipeline's steps is 4, the workload's is 5"),
        ({"guidance": 3.0}, "the pipeline's guidance is 1.0, the workload's is 3.0"),
        ({"resolution": (64, 64)}, "the pipeline's resolution"),
    ],
)
def test_a_pipeline_of_other_settings_than_the_workload_s(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(live, "LevelBank", lambda *_: ToyBank(LEVELS))
    other = dataclasses.replace(WORKLOAD, **changes)
    with pytest.raises(UsageError, match=message):
        live_problem(ToyPipeline(STEPS), other, COSTS, levels=tuple(LEVELS), speedup=2)


def test_inner_products_are_only_given_in_the_units_of_errors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live, "LevelBank", lambda *_: ToyBank(LEVELS))
    squares = live_problem(
        ToyPipeline(STEPS),
        WORKLOAD,
        COSTS,
        levels=tuple(LEVELS),
        speedup=2,
        metric="latent_mse",
        record_singles=True,
    )
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


@pytest.mark.parametrize(
    ("workload", "nfe", "expected"),
    [
        ({"model": "sd3", "weights": "embedded", "guidance": 4.0}, {}, (2,) * 6),
        ({"model": "sd3", "weights": "embedded", "guidance": 1.0}, {}, (1,) * 6),
        ({"model": "flux", "weights": "embedded", "guidance": 4.0}, {}, (2,) * 6),
        ({"model": "flux", "weights": "some/dev", "guidance": 4.0}, {}, (1,) * 6),
        ({"model": "sd3", "guidance": 1.0}, {"per_step": [1, 2, 2, 2, 2, 1]}, (1, 2, 2, 2, 2, 1)),
    ],
)
def test_guidance_counts_two_network_evaluations(
    workload: dict[str, Any], nfe: dict[str, Any], expected: tuple[int, ...]
) -> None:
    made = recording()
    made.manifest.update(workload=workload, nfe=nfe)
    assert from_recording(made, COSTS, speedup=2).nfe_per_step == expected


def test_plans_that_are_not_the_recording_s() -> None:
    error = RecordedError(recording(), "latent_rmse")
    with pytest.raises(UsageError, match=r"fp32\*3 w8a8 has 4 steps, the recording 6"):
        error(PrecisionPlan.parse("fp32*3 w8a8"))
    with pytest.raises(UsageError, match="unknown level of the recording 'w8a9'"):
        error(PrecisionPlan.parse("fp32*5 w8a9"))


def test_unknown_metrics_and_levels_without_a_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "LevelBank", lambda *_: ToyBank(LEVELS))
    with pytest.raises(UsageError, match="did you mean 'latent_rmse'"):
        LiveError(ToyPipeline(STEPS), WORKLOAD, tuple(LEVELS), metric="rmse")
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
