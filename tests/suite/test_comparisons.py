"""Comparisons on results whose answers are known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis.comparisons import matched, ranks, transfer_losses
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.suite import SuiteResults
from tmpdiff_bench.suite.printing import allocator_table

RATIOS = {"uniform": 1.0, "good": 0.5, "same": 1.0, "bad": 2.0}


def made(seed: int = 0, noise: float = 0.05) -> SuiteResults:
    """Errors of four allocators on 12 tasks and 8 prompts each, at known ratios to uniform's."""
    rng, rows = np.random.default_rng(seed), []
    for model in ("sd3", "flux"):
        for prompt_set in ("a", "b"):
            for target in (1.5, 2.0, 2.5):
                task = f"{model}/{prompt_set}/{target}"
                for prompt in range(8):
                    level = rng.lognormal(0, 1)
                    for name, ratio in RATIOS.items():
                        spread = 1 if name == "uniform" else rng.lognormal(0, noise)
                        rows.append(
                            {
                                **{"task": task, "model": model, "prompt_set": prompt_set},
                                **{"levels": "fp32 w4a4", "target_speedup": target, "steps": 8},
                                **{"allocator": name, "plan": name, "speedup": target},
                                **{"prompt_id": f"{prompt_set}{prompt}", "seed": 0},
                                **{"metric": "latent_rmse", "value": level * ratio * spread},
                            }
                        )
    empty = pd.DataFrame()
    return SuiteResults({}, empty, pd.DataFrame(rows), empty, empty, {})


def test_known_ratios_are_found() -> None:
    found = matched(made(), by=("model",)).set_index(["model", "allocator"])
    for model in ("sd3", "flux"):
        for name in ("good", "bad"):
            row = found.loc[model, name]
            assert row["low"] < np.log(RATIOS[name]) < row["high"]
            assert row["p_holm"] < 0.01
        assert found.loc[model, "same"]["low"] < 0 < found.loc[model, "same"]["high"]
    assert (found["prompts"] == 16).all()
    assert (found["tasks"] == 6).all()


def test_an_allocator_like_the_baseline_is_told_apart_at_the_rate_of_the_test() -> None:
    p = [
        matched(made(seed), by=("steps",)).set_index("allocator").loc["same", "p"]
        for seed in range(60)
    ]
    assert np.mean(np.array(p) <= 0.05) <= 0.15
    assert 0.3 < np.mean(p) < 0.7


def test_ranks_follow_the_errors() -> None:
    found = ranks(made())
    assert found.blocks == 4  # a model and a prompt set: targets are no replicates
    order = dict(zip(found.names, found.mean_ranks, strict=True))
    assert order["good"] == 1
    assert order["bad"] == 4
    assert order["same"] + order["uniform"] == 5


def test_an_allocator_that_did_not_run_everywhere_is_not_ranked() -> None:
    results = made()
    scores = results.scores
    left = scores[~((scores["allocator"] == "same") & (scores["task"] == "sd3/a/1.5"))]
    found = ranks(SuiteResults(**{**vars(results), "scores": left}))
    assert set(found.names) == {"uniform", "good", "bad"}


def test_unknown_baselines_and_metrics_are_named() -> None:
    with pytest.raises(UsageError, match="did you mean 'uniform'"):
        matched(made(), baseline="unifrom")
    with pytest.raises(UsageError, match="unknown metric"):
        matched(made(), metric="ssim")


def test_regret_of_the_exhaustive_is_none(toy_results: SuiteResults) -> None:
    table = toy_results.allocations
    found = table[(table["allocator"] == "exhaustive") & (table["status"] == "ok")]
    assert len(found)
    assert (found["steps"] == 8).all()
    assert (found["regret"] == 0).all()


def test_transfer_of_a_plan_that_is_the_own_one_loses_nothing(toy_results: SuiteResults) -> None:
    table = transfer_losses(toy_results)
    same = table[table["same_plan"] == 1]
    assert (same["difference"] == 0).all()
    assert set(table["kind"]) == {"prompt_set", "seed", "steps", "language"}


def test_the_printed_table_holds_means_of_tasks(toy_results: SuiteResults) -> None:
    table = allocator_table(toy_results, 8).set_index("allocator")
    scores = toy_results.scores
    own = scores[(scores["steps"] == 8) & (scores["allocator"] == "gram")]
    rmse = own[own["metric"] == "latent_rmse"].groupby("task")["value"].mean()
    assert table.loc["gram", "error"] == pytest.approx(np.exp(np.log(rmse).mean()))
    assert table.loc["uniform", "ratio"] == 1
    assert np.isnan(table.loc["reference", "error"])
