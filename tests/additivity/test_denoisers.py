"""Denoisers with known additivity, from the engine to the verdicts.

Euler steps of x' = f(x, level). Where f is linear in x and a level adds a constant, deviations
superpose exactly; where a level adds a quadratic term, a pair of low steps interacts by an amount
that is worked out here by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.toy import toy, toy_banks, toy_call
from tests.trajectory.test_recorder import workload
from tmpdiff_bench.additivity import analyse
from tmpdiff_bench.pipelines import LoadedModel
from tmpdiff_bench.plan import JointPlan
from tmpdiff_bench.trajectory import Recording, recorder
from tmpdiff_bench.trajectory.design import joint_design
from tmpdiff_bench.trajectory.recorder import record_setup
from tmpdiff_bench.trajectory.setup import Setup

STEPS = 6
PROMPTS = {f"p{i}": "x" * i for i in range(8)}
Denoiser = Callable[[torch.Tensor], torch.Tensor]


def recorded(folder: Path, monkeypatch: pytest.MonkeyPatch, low: Denoiser) -> Recording:
    levels = {"fp32": lambda x: -x, "w4a4": low}
    monkeypatch.setattr(recorder, "level_banks", toy_banks(levels))
    design = joint_design(tuple(levels), STEPS, per_level=10, complements=2, mixed=0, rng=0)
    joint = tuple(JointPlan(plan.plan, plan.kind, plan.held_out) for plan in design)
    asked = workload(steps=STEPS, prompts=PROMPTS)
    texts = [PROMPTS[prompt] for prompt, _ in asked.samples]
    call = toy_call(texts, STEPS, seeds=asked.generator_seeds)
    loaded = LoadedModel("toy", toy(), "untrained", "0" * 64, torch.device("cpu"))
    return record_setup(Setup(loaded, call, asked, tuple(levels), "toy", joint), folder)


def test_linear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """H1 holds to rounding, and with it `gram`, which has no other way to be exact."""
    recording = recorded(tmp_path, monkeypatch, lambda x: -x + 0.05 * torch.ones_like(x).cumsum(-1))
    report = analyse(recording, metrics=["latent_rmse"], predictors=["sum", "gram"])
    [found] = report.superposition
    assert found.residual.high < 1e-5
    assert found.residual_verdict == "supported"
    gram = next(score for score in report.scores if score.predictor == "gram")
    assert gram.verdict == "supported"
    assert gram.test is not None
    assert gram.test.r2_plans > 1 - 1e-8


def test_quadratic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deviation meets its own square in a later low step: H1 fails by just that interaction."""
    strength, shrink, pairs = 0.4, 1 - 1 / STEPS, 0
    recording = recorded(tmp_path, monkeypatch, lambda x: -x + strength * x.square())
    length = np.array([len(PROMPTS[prompt]) for prompt, _ in recording.samples])[:, None]
    for plan, joint in zip(recording.plans, recording.joint, strict=True):
        low = [step for step, level in enumerate(plan) if level == "w4a4"]
        if len(low) != 2:
            continue
        pairs += 1
        first, second = low
        # the reference's state and the deviation, before the second low step
        state = recording.reference.astype(np.float64)
        for _ in range(STEPS - second):
            state = (state - 0.01 * length / STEPS) / shrink
        shift = recording.singles[0, first].astype(np.float64) / shrink ** (STEPS - second)
        kick = strength / STEPS * ((state + shift) ** 2 - state**2)
        interaction = joint - recording.singles[0, low].sum(axis=0)
        expected = kick * shrink ** (STEPS - second - 1)
        np.testing.assert_allclose(interaction, expected, atol=1e-5)
        assert np.abs(interaction).max() > 1e-2
    assert pairs
    report = analyse(recording, metrics=["latent_rmse"], predictors=["gram"])
    assert report.superposition[0].residual_verdict == "refuted"
