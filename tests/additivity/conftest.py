"""A synthetic recording with known truth, and a report on it with verdicts set by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tmpdiff_bench.additivity import AdditivityReport
from tmpdiff_bench.additivity.records import (
    AdditivityTest,
    DesignFreeCheck,
    Floats,
    GramMatrix,
    Predictions,
    Score,
    Sensitivity,
    Superposition,
    Verdict,
)
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.statistics import Interval
from tmpdiff_bench.trajectory import Recording

LEVELS = ("fp32", "w8a8", "w4a4")
NOISE = {"w8a8": 0.002, "w4a4": 0.05}
MANIFEST: dict[str, Any] = {
    "title": "sd3 (embedded, 3.6 M)",
    "workload": {
        "model": "sd3",
        "weights": "embedded",
        "weights_digest": "ab" * 32,
        "sampler": {"class": "FlowMatchEulerDiscreteScheduler", "shift": 1.0},
        "arguments": {"guidance_scale": 4.0},
        "image_size": [64, 64],
        "seeds": [0, 1],
        "dtype": "float32",
    },
    "environment": {
        "tmpdiff_bench": "0.1.0",
        "python": "3.11",
        "torch": "2",
        "diffusers": "0",
        "transformers": "0",
        "device": "cpu",
        "git_commit": "0123456",
        "git_dirty": False,
    },
    "nfe": {"spent": 2000, "plain_loop": 9000},
    "seconds": 12.0,
}


def make_recording(
    *, levels: tuple[str, ...] = LEVELS, steps: int = 6, prompts: int = 6, plans: int = 8
) -> Recording:
    """Deviations that share a direction in part; a joint error is their sum with noise redrawn."""
    rng = np.random.default_rng(0)
    samples = tuple((f"p{prompt}", seed) for prompt in range(prompts) for seed in (0, 1))
    n, size = len(samples), 64
    scale = np.array([NOISE.get(level, 0.02) for level in levels[1:]])
    decay = np.exp(-np.arange(steps) / steps) * rng.uniform(0.7, 1.4, (len(scale), steps))
    width = (scale[:, None] * decay)[..., None, None]
    common = rng.standard_normal((len(scale), 1, n, size))
    systematic = width * (0.3 * common + 0.4 * rng.standard_normal((len(scale), steps, n, size)))

    def deviations() -> Floats:
        return systematic + width * rng.standard_normal(systematic.shape)

    designed: list[tuple[PrecisionPlan, str]] = []
    for level in levels[1:]:
        designed.append((PrecisionPlan.uniform(level, steps), "all-low"))
        for _ in range(plans):
            low = rng.random(steps) < rng.uniform(0.2, 0.9)
            low[:2] = True
            mask = tuple(level if chosen else levels[0] for chosen in low)
            designed.append((PrecisionPlan(mask), "random"))
    for _ in range(plans // 2):
        designed.append((PrecisionPlan(tuple(rng.choice(levels, steps).tolist())), "mixed"))
    designed = list(dict(designed).items())
    singles = deviations()
    joint = []
    for plan, _ in designed:
        drawn = deviations()
        joint.append(
            sum(
                drawn[levels.index(level) - 1, step]
                for step, level in enumerate(plan)
                if level != levels[0]
            )
        )
    runs = [
        (str(PrecisionPlan.single(levels[0], level, step, steps)), "single", singles[index, step])
        for index, level in enumerate(levels[1:])
        for step in range(steps)
    ] + [(str(plan), "joint", error) for (plan, _), error in zip(designed, joint, strict=True)]
    pictures = {"reference": _picture(rng, 3)} | {run: _picture(rng, 3) for run, _, _ in runs}
    return Recording(
        levels=levels,
        steps=steps,
        samples=samples,
        prompts={
            f"p{prompt}": f"a red circle & {prompt} <b>squares</b>" for prompt in range(prompts)
        },
        reference=np.zeros((n, size), np.float32),
        singles=singles.astype(np.float32),
        replicates=deviations()[:, :, ::2].astype(np.float32),
        replicate_rows=np.arange(0, n, 2),
        plans=tuple(plan for plan, _ in designed),
        kinds=tuple(kind for _, kind in designed),
        held_out=np.arange(len(designed)) % 3 != 1,
        joint=np.array(joint, dtype=np.float32),
        floor=np.full(n, 2e-4, np.float32),
        table=_table(runs, samples),
        pictures=pictures,
        picture_rows=np.array([0, 2, 4]),
        manifest=MANIFEST,
    )


def _picture(rng: np.random.Generator, count: int) -> Any:
    return rng.integers(0, 255, (count, 16, 16, 3), dtype=np.uint8)


def _table(
    runs: list[tuple[str, str, Floats]], samples: tuple[tuple[str, int], ...]
) -> pd.DataFrame:
    rows = [
        ("toy", "scenes", plan, kind, prompt, seed, metric, value)
        for plan, kind, error in runs
        for (prompt, seed), mse in zip(samples, (error**2).mean(axis=-1), strict=True)
        for metric, value in (("latent_rmse", math.sqrt(mse)), ("latent_mse", mse))
    ]
    names = ["model", "dataset", "plan", "kind", "prompt_id", "seed", "metric", "value"]
    return pd.DataFrame(rows, columns=names)


def make_test(ratio: Interval, verdict: Verdict, r2: float = 0.9) -> AdditivityTest:
    return AdditivityTest(
        slope=ratio,
        intercept=Interval(0.0, -0.1, 0.1),
        wald_p=0.5,
        tost_p=0.01,
        reset_p=math.nan,
        median_relative_error=0.07,
        r2_identity=r2 - 0.1,
        r2_plans=r2,
        verdict=verdict,
        clusters=(6, 5),
        method="by hand",
        ratio=ratio,
        ratio_small=Interval(0.7, 0.6, 0.8),
        ratio_large=Interval(1.4, 1.3, 1.5),
        range_p=0.2,
        outside_p=0.3,
    )


def make_score(level: str, predictor: str, test: AdditivityTest | None, **more: Any) -> Score:
    fields: dict[str, Any] = {
        "metric": "latent_rmse",
        "reason": "" if test else "needs training plans",
        "verdict": test.verdict if test else "not defined",
        "training_plans": 3,
        "held_out_plans": 5,
        "floor_ratio": 40.0,
        "r2_common": test.r2_plans if test else math.nan,
        "rank_within": Interval(0.5, 0.3, 0.7),
        "rank_pairs": 4,
    }
    return Score(level=level, predictor=predictor, test=test, **(fields | more))


def make_report(recording: Recording) -> AdditivityReport:
    """Predictions as they are; verdicts set by hand, so that every wording occurs."""
    low = recording.levels[1:]
    errors = np.sqrt((recording.singles.astype(float) ** 2).mean(axis=-1))
    gram = np.einsum("lsnd,ltnd->lstn", recording.singles, recording.singles) / 64
    predictions, sensitivity, superposition, grams = [], [], [], []
    for index, level in enumerate(low):
        chosen = [
            i
            for i, plan in enumerate(recording.plans)
            if recording.kinds[i] != "mixed" and plan.count(level)
        ]
        masks = np.array([[at == level for at in recording.plans[i]] for i in chosen], dtype=float)
        joint = np.sqrt((recording.joint[chosen].astype(float) ** 2).mean(axis=-1))
        quadratic = np.einsum("ps,stn,pt->pn", masks, gram[index], masks)
        made = {
            "sum": masks @ errors[index],
            "root_sum_squares": np.sqrt(masks @ errors[index] ** 2),
            "gram": np.sqrt(quadratic),
        }
        for name, predicted in made.items():
            predictions.append(
                Predictions(
                    level=level,
                    metric="latent_rmse",
                    predictor=name,
                    plans=tuple(str(recording.plans[i]) for i in chosen),
                    kinds=tuple(recording.kinds[i] for i in chosen),
                    low_steps=masks.sum(axis=1).astype(int),
                    held_out=recording.held_out[chosen],
                    predicted=predicted,
                    joint=joint,
                )
            )
        mean = errors[index].mean(axis=1)
        sensitivity.append(
            Sensitivity(
                level=level,
                metric="latent_rmse",
                error=mean,
                low=0.9 * mean,
                high=1.1 * mean,
                floor_ratio=mean / 2e-4,
                flagged=mean / 2e-4 < 10,
            )
        )
        grams.append(GramMatrix(level, gram[index].mean(axis=-1), None))
        plans = np.zeros(len(chosen))
        superposition.append(
            Superposition(
                level=level,
                residual=Interval(0.92, 0.9, 0.94),
                cosine=Interval(0.4, 0.35, 0.45),
                residual_verdict="refuted",
                mean_square_ratio=Interval(1.01, 0.99, 1.03),
                mean_square_verdict="supported",
                off_diagonal_share=Interval(0.22, 0.18, 0.27),
                orthogonality_verdict="undecided",
                systematic_share=Interval(0.3, 0.2, 0.4),
                context_cosine=None,
                clusters=(6, len(chosen)),
                floor_ratio=9.5,
                plans=tuple(str(recording.plans[i]) for i in chosen),
                low_steps=masks.sum(axis=1).astype(int),
                residual_by_plan=plans,
                cosine_by_plan=plans,
                ratio_by_plan=plans,
            )
        )
    tests = {
        "sum": make_test(Interval(0.48, 0.43, 0.53), "refuted", r2=-3.5),
        "root_sum_squares": make_test(Interval(1.08, 0.97, 1.2), "undecided", r2=0.7),
        "gram": make_test(Interval(1.01, 0.99, 1.03), "supported", r2=0.987),
        "affine_sum": None,
    }
    return AdditivityReport(
        manifest=recording.manifest,
        levels=recording.levels,
        steps=recording.steps,
        prompts=len(recording.prompts),
        samples=len(recording.samples),
        margin=0.1,
        alpha=0.05,
        rule="supported: inside the margin. refuted: outside. undecided: neither.",
        scores=tuple(
            make_score(level, name, test) for level in low for name, test in tests.items()
        ),
        superposition=tuple(superposition),
        design_free=tuple(
            DesignFreeCheck(
                level=level,
                metric="latent_rmse",
                steps=(0, 1),
                alone=np.ones(2),
                removed=np.full(2, 0.4),
                ratio=Interval(0.4, 0.3, 0.5),
                verdict="refuted",
                clusters=6,
                floor_ratio=9.5,
            )
            for level in low
        ),
        sensitivity=tuple(sensitivity),
        grams=tuple(grams),
        predictions=tuple(predictions),
        warnings=("two prompts are longer than the tokenizer takes",),
    )


@pytest.fixture(scope="session")
def recording() -> Recording:
    return make_recording()


@pytest.fixture(scope="session")
def report(recording: Recording) -> AdditivityReport:
    return make_report(recording)
