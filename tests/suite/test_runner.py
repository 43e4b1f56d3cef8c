"""A whole run on toys: numbers against plain loops, the store, and rows that are all there."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tests.suite.conftest import DEFAULTS, TINY, TOY, toy_model
from tests.toy import LEVELS as FUNCTIONS
from tests.toy import by_hand, toy_call
from tmpdiff_bench.allocators import Allocation, AllocationProblem, knapsack
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.noise import generator_seed
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.store import CellStore
from tmpdiff_bench.suite import Group, SuiteResults, bench
from tmpdiff_bench.suite.bench import LEVELS, Bench, Prompts
from tmpdiff_bench.suite.measured import MeasuredErrors
from tmpdiff_bench.suite.rules import OURS, every_plan, left_out
from tmpdiff_bench.suite.runner import run_suite
from tmpdiff_bench.suite.v1 import METRICS, OF_THE_IMAGE_ALONE, PROMPT_SETS


def plain_run(prompts: Prompts, plan: PrecisionPlan) -> torch.Tensor:
    """Final latents of a loop over steps, without pipeline, engine, store or suite."""
    seeds = [generator_seed(prompt, seed) for prompt, seed in prompts.samples]
    call = toy_call(list(prompts.table["text"]), len(plan), seeds=seeds, **DEFAULTS)
    return by_hand(FUNCTIONS, plan.levels, call, shape=(2, 8, 8))


def test_every_task_and_allocator_has_one_row(toy_results: SuiteResults) -> None:
    table = toy_results.allocations
    assert len(table) == len(TOY.tasks()) * len(OURS)
    assert not table.duplicated(["task", "allocator"]).any()
    for task in TOY.tasks():
        own = table[table["task"] == task.name].set_index("allocator")
        out = {name for name in OURS if left_out(task, name)}
        assert set(own.index[own["status"] == "left out"]) == out
        assert set(own.index[own["status"] == "ok"]) == set(OURS) - out
    assert (table["reason"] == "").equals(table["status"] == "ok")


def test_errors_and_scores_are_those_of_plain_loops(toy_results: SuiteResults) -> None:
    rows = toy_results.allocations
    for row in rows[rows["status"] == "ok"].iloc[::7].itertuples():
        plan = PrecisionPlan.parse(row.plan)
        for split, count in (("calibration", 2), ("evaluation", 3)):
            prompts = Prompts(row.prompt_set, split, count, 0)
            final = plain_run(prompts, plan)
            reference = plain_run(prompts, PrecisionPlan.uniform("fp32", row.steps))
            square = (final - reference).double().square().flatten(1).mean(1)
            rmse = square.sqrt().numpy()
            if split == "calibration":
                assert row.error == pytest.approx(rmse.mean(), rel=1e-4)
                continue
            scores = toy_results.scores
            mine = scores[(scores["task"] == row.task) & (scores["allocator"] == row.allocator)]
            values = mine[mine["metric"] == "latent_rmse"].set_index("prompt_id")["value"]
            assert values[prompts.table["prompt_id"]].to_numpy() == pytest.approx(rmse, rel=1e-4)


def test_plans_are_within_budget_and_regret_is_against_the_best(toy_results: SuiteResults) -> None:
    table = toy_results.allocations[toy_results.allocations["status"] == "ok"]
    assert (table["cost"] <= table["budget"] * (1 + 1e-9)).all()
    assert (table["speedup"] >= table["target_speedup"] * (1 - 1e-9)).all()
    small = table[(table["steps"] == 8) & (table["allocator"] != "fewer_steps")]
    assert (small["regret"] >= 0).all()
    assert (small[small["allocator"] == "exhaustive"]["regret"] == 0).all()
    assert table[table["steps"] == 20]["regret"].isna().all()
    counted = table[table["allocator"] != "fewer_steps"]
    assert (counted["nfe"] <= counted["nfe_plain"]).all()
    assert (counted["nfe"] % (2 * TOY.calibration) == 0).all()


def test_scores_have_every_metric_sample_and_allocator(toy_results: SuiteResults) -> None:
    scores = toy_results.scores
    sizes = scores.groupby(["task", "allocator"]).size()
    of_plans = sizes.drop("reference", level="allocator")
    assert (of_plans == TOY.evaluation * len(METRICS)).all()
    reference = scores[scores["allocator"] == "reference"]
    assert set(reference["metric"]) == set(OF_THE_IMAGE_ALONE)
    assert np.isfinite(scores["value"]).all()
    assert {"en", "de", "es"} >= set(scores["language"])


def test_no_evaluation_prompt_is_seen_while_allocating(toy_results: SuiteResults) -> None:
    for name in TOY.prompt_sets:
        seen = {
            prompt
            for seed in (0, 1)
            for language in (None, "en", "de")
            for prompt in Prompts(name, "calibration", 2, seed, language).table["prompt_id"]
        }
        scored = toy_results.scores[toy_results.scores["prompt_set"] == name]["prompt_id"]
        assert not seen & set(scored)


def test_transfers_name_source_and_own(toy_results: SuiteResults) -> None:
    table = toy_results.transfers
    assert set(table["kind"]) == {"prompt_set", "seed", "steps", "language"}
    assert set(table[table["kind"] == "prompt_set"]["source"]) == set(TOY.prompt_sets)
    for row in table[table["native"]].drop_duplicates(["task", "kind"]).itertuples():
        own = toy_results.allocations
        own = own[(own["task"] == row.task) & (own["allocator"] == row.allocator)]
        assert row.plan == own["plan"].item()
    assert len(PrecisionPlan.parse(table[table["steps"] == 20]["plan"].iloc[0])) == 20


def test_drift_is_beside_the_smallest_single_error(toy_results: SuiteResults) -> None:
    table = toy_results.drift
    assert len(set(table["condition"])) == 3
    assert (table["smallest_single_error"] > 0).all()
    rounded = table[table["condition"] == "bfloat16"]["latent_rmse"]
    assert rounded.between(1e-4, 0.05).all()  # from the same noise, rounded
    assert table["ratio"].to_numpy() == pytest.approx(
        (table["latent_rmse"] / table["smallest_single_error"]).to_numpy()
    )


def test_the_same_store_gives_the_same_tables_without_running(
    toys: None, toy_results: SuiteResults, toy_store: Path
) -> None:
    again = run_suite(TOY, toy_store)
    assert again.manifest["nfe"]["computed"] == {"sd3": 0}
    timed = ["seconds", "measuring_seconds"]
    pd.testing.assert_frame_equal(
        again.allocations.drop(columns=timed), toy_results.allocations.drop(columns=timed)
    )
    pd.testing.assert_frame_equal(again.scores, toy_results.scores)
    pd.testing.assert_frame_equal(again.transfers, toy_results.transfers)
    assert again.manifest["digests"] == toy_results.manifest["digests"]


def test_a_run_that_was_killed_goes_on(
    toys: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_suite(TINY, tmp_path / "whole")
    put, made = CellStore.put, [0]

    def dying(self: CellStore, key: str, arrays: Any) -> None:
        made[0] += 1
        if made[0] == 12:
            raise KeyboardInterrupt
        put(self, key, arrays)

    with monkeypatch.context() as patch:
        patch.setattr(CellStore, "put", dying)
        with pytest.raises(KeyboardInterrupt):
            run_suite(TINY, tmp_path / "killed")
    on = run_suite(TINY, tmp_path / "killed")
    assert 0 < on.manifest["nfe"]["computed"]["sd3"] < whole.manifest["nfe"]["computed"]["sd3"]
    pd.testing.assert_frame_equal(on.scores, whole.scores)
    keys = [sorted(CellStore(tmp_path / name).keys()) for name in ("whole", "killed")]
    assert keys[0] == keys[1]
    for key in keys[0]:
        one, other = (CellStore(tmp_path / name).get(key) for name in ("whole", "killed"))
        assert one is not None
        assert other is not None
        timed = {"spent"}  # a model's seconds
        assert all((one[name] == other[name]).all() for name in one.keys() - timed)


def test_network_evaluations_are_counted_once(toys: None, tmp_path: Path) -> None:
    spent: list[int] = []
    prompts = Prompts(PROMPT_SETS[0], "calibration", 3, 0)
    counting = Bench("sd3", CellStore(tmp_path), spent.append)
    assert counting.nfe(prompts, 8) == [2] * 8
    assert sum(spent) == 16, "one sample, one loop"
    assert Bench("sd3", CellStore(tmp_path), spent.append).nfe(prompts, 8) == [2] * 8
    assert sum(spent) == 16


def test_a_batch_is_encoded_once_for_all_engines(toys: None, tmp_path: Path) -> None:
    made = Bench("sd3", CellStore(tmp_path), lambda nfe: None)
    for steps in (4, 5, 5):
        prompts = Prompts(PROMPT_SETS[0], "calibration", 2, 0)
        made.engine(prompts, steps).evaluate([PrecisionPlan.uniform("fp32", steps)])
    assert made.model.pipeline.text_encoder.calls == 1


def test_bits_do_not_depend_on_which_plans_are_asked_for(toys: None, tmp_path: Path) -> None:
    prompts = Prompts(PROMPT_SETS[0], "calibration", 2, 0)
    group = Group("sd3", PROMPT_SETS[0], 8)
    plans = every_plan(group)[0]
    listed = MeasuredErrors(Bench("sd3", CellStore(tmp_path / "a"), lambda nfe: None), prompts, 8)
    listed.prepare(plans)
    alone = MeasuredErrors(Bench("sd3", CellStore(tmp_path / "b"), lambda nfe: None), prompts, 8)
    for plan in reversed(plans[::5]):
        assert (alone.samples(plan) == listed.samples(plan)).all()


def test_a_model_without_weights_is_said_not_dropped(
    toys: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(model: str, dtype: str = "fp32") -> object:
        if model == "flux":
            raise UsageError("the embedded weights of flux are not in this installation")
        return toy_model(model)

    monkeypatch.setattr(bench, "load_pipeline", missing)
    both = type(TINY)("quick", ("sd3", "flux"), TINY.prompt_sets, (8,), (), 2, 2)
    found = run_suite(both, tmp_path)
    flux = found.allocations[found.allocations["model"] == "flux"]
    assert len(flux) == 6 * len(OURS)
    assert set(flux["status"]) == {"no weights"}
    assert "not in this installation" in flux["reason"].iloc[0]
    assert set(found.scores["model"]) == {"sd3"}
    assert list(found.manifest["absent_models"]) == ["flux"]
    assert "model flux" not in found.manifest["digests"]


def test_a_contributed_allocator_runs_on_every_task(
    toys: None, toy_store: Path, toy_results: SuiteResults
) -> None:
    def failing(problem: AllocationProblem) -> Allocation:
        raise RuntimeError("out of ideas")

    found = run_suite(
        TOY,
        toy_store,
        contributed={"mine:knapsack": knapsack, "mine:bad": failing},
    )
    table = found.allocations.set_index(["task", "allocator"])
    for task in TOY.tasks():
        mine, ours = table.loc[task.name, "mine:knapsack"], table.loc[task.name, "knapsack"]
        assert (mine["status"], mine["plan"], mine["nfe"]) == ("ok", ours["plan"], ours["nfe"])
        bad = table.loc[task.name, "mine:bad"]
        assert (bad["status"], bad["reason"]) == ("failed", "RuntimeError: out of ideas")
        assert math.isnan(bad["error"])
    assert "mine:bad" not in set(found.scores["allocator"])


def test_gram_of_a_level_set_is_the_part_of_its_levels(toys: None, tmp_path: Path) -> None:
    prompts = Prompts(PROMPT_SETS[0], "calibration", 2, 0)
    errors = MeasuredErrors(Bench("sd3", CellStore(tmp_path), lambda nfe: None), prompts, 8)
    reference = plain_run(prompts, PrecisionPlan.uniform("fp32", 8))
    cells = [
        (plain_run(prompts, PrecisionPlan.single("fp32", level, step, 8)) - reference).flatten()
        for level in LEVELS[1:]
        for step in range(8)
    ]
    vectors = torch.stack(cells).double()
    expected = (vectors @ vectors.T / vectors.shape[1]).numpy()
    assert errors.gram == pytest.approx(expected, rel=1e-3, abs=1e-9)
