"""Findings say what the numbers say, and other numbers make other words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from analysis import findings, first_last, ranks, regret, rivals
from analysis.hypotheses import SUMMARIES
from analysis.hypotheses import table as hypotheses_table
from analysis.suite_data import BEST
from tests.analysis.conftest import make_reports
from tests.analysis.made_up import FACTORS, PROFILE, suite_results


def test_rivals_recover_the_ratios_that_were_put_in(made_up_reports: Path) -> None:
    frame = pd.read_csv(made_up_reports / "tables" / "rivals.csv")
    whole = frame[(frame["model"] == "all") & (frame["rival"] == "uniform")]
    for row in whole.to_dict("records"):
        wanted = FACTORS.get(row["allocator"], 1.0 if row["steps"] == 8 else FACTORS["gram"])
        assert row["ratio"] == pytest.approx(wanted / FACTORS["uniform"], rel=0.05)
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
    assert set(whole["allocator"]) == {*FACTORS, BEST} - {"uniform", "exhaustive"}


def test_all_is_made_of_a_single_prompt(tmp_path: Path) -> None:
    alone = replace(PROFILE, prompt_sets=PROFILE.prompt_sets[:1], evaluation=1)
    reports = make_reports(tmp_path, suite_results(profile=alone))
    frame = pd.read_csv(reports / "tables" / "rivals.csv")
    assert frame["ratio"].notna().all()
    assert set(frame["outcome"]) == {"undecided"}


def test_better_needs_both_a_ratio_below_one_and_a_small_p() -> None:
    assert rivals.outcome(0.9, 0.01) == "better"
    assert rivals.outcome(1.1, 0.01) == "worse"
    assert rivals.outcome(0.5, 0.06) == rivals.outcome(0.5, float("nan")) == "undecided"


def test_the_words_about_rivals_turn_with_the_numbers(made_up_reports: Path) -> None:
    frame = pd.read_csv(made_up_reports / "tables" / "rivals.csv")
    frame["outcome"], frame["p_holm"] = "better", 0.001
    said = " ".join(findings.on_rivals(frame))
    assert all(name in said.rpartition(": ")[2] for name in ("first last", "knapsack", "gram"))
    assert "better in 8 of 8 cases" in said
    frame["outcome"] = "worse"
    said = " ".join(findings.on_rivals(frame))
    assert "no single allocator" in said
    assert "worse in 8 of 8 cases" in said


def test_regrets_are_told_in_order_and_the_front_is_right(made_up_reports: Path) -> None:
    frame = pd.read_csv(made_up_reports / "tables" / "regret.csv")
    first, front = findings.on_regret(frame)
    places = [first.index(name) for name in ("gram 5", "knapsack 20", "first last 60")]
    assert places == sorted(places)
    assert "fewer steps" not in first
    # each worse one was cheaper
    assert front.endswith("gram, knapsack, first last and uniform.")


def test_regret_is_exact_and_counts_optima() -> None:
    frame = regret.table(suite_results().allocations)
    whole = frame[(frame["model"] == "all") & (frame["levels"] == "all")]
    found = dict(zip(whole["allocator"], whole["regret"], strict=True))
    wanted = {name: f - 1 for name, f in FACTORS.items() if name != "fewer_steps"}
    assert found == pytest.approx(wanted)
    assert dict(zip(whole["allocator"], whole["optima"], strict=True))["exhaustive"] == 1


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "good enough"), (1.6, "not good enough")])
def test_first_last_is_judged_by_its_whole_interval(factor: float, verdict: str) -> None:
    found = suite_results({**FACTORS, "first_last": factor, "exhaustive": 1.0}, noise=0.01)
    frame = first_last.table(first_last.paired(found))
    at_8 = frame[frame["steps"] == 8]
    assert set(at_8["verdict"]) == {verdict}
    said = " ".join(findings.on_first_last(at_8))
    assert f"is {verdict} in {len(at_8)} of {len(at_8)} cases" in said
    assert "Nowhere is first-and-last-n found undecided" in said


def test_ranks_are_those_of_the_factors() -> None:
    frame = ranks.table(suite_results(noise=0.0))
    at_8 = frame[frame["steps"] == 8]
    assert list(at_8["allocator"]) == sorted(FACTORS, key=lambda name: FACTORS[name])
    assert list(at_8["mean_rank"]) == [1, 2, 3, 4, 5, 6]
    said = next(findings.on_ranks(frame))
    assert said.startswith("At 8 steps exhaustive has the best mean rank, 1.00 of 6")


def test_transfer_tells_the_loss_that_was_put_in(made_up_reports: Path) -> None:
    frame = pd.read_csv(made_up_reports / "tables" / "transfer.csv")
    assert frame["ratio"].to_numpy() == pytest.approx(1.5)
    assert "A plan from another seed has 1.50" in next(findings.on_transfer(frame))


def test_hypotheses_are_told_with_their_verdicts(made_up_reports: Path) -> None:
    frame = hypotheses_table(sorted(made_up_reports.glob(SUMMARIES)))
    said = list(findings.on_hypotheses(frame))
    assert "refuted for sd3 at w4a4 (relative residual 1.00 to 1.00)" in said[0]
    assert "supported for sd3 at w4a4" in said[1]
    assert "undecided for sd3 at w4a4 (off-diagonal share 100 % to 100 %)" in said[2]
    assert [line.split(",")[0] for line in said] == ["H1", "H1m", "H2", "H3"]
