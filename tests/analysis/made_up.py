"""Suite results and reports of additivity with known truth, for tests of what is made of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from tmpdiff_bench.suite import Profile, SuiteResults, picture_name
from tmpdiff_bench.suite.results import COLUMNS
from tmpdiff_bench.suite.v1 import METRICS, PROMPT_SETS

# error of each allocator's plans over the optimum's
FACTORS = {
    "uniform": 3.0,
    "first_last": 1.6,
    "knapsack": 1.2,
    "gram": 1.05,
    "exhaustive": 1.0,
    "fewer_steps": 2.0,
}
PROFILE = Profile(
    "quick", ("sd3", "flux"), PROMPT_SETS[:2], (8, 20), (8, 20), calibration=2, evaluation=4
)


def suite_results(
    factors: dict[str, float] = FACTORS, *, noise: float = 0.05, profile: Profile = PROFILE
) -> SuiteResults:
    """Results of all tasks of `profile`: errors are the factor times a common error of the sample
    and log-normal noise.
    """
    rng = np.random.default_rng(0)
    allocations, scores, transfers, drift = [], [], [], []
    pictures = {}
    shown = min(2, profile.evaluation)
    for task in profile.tasks():
        stem = task.prompt_set.removeprefix("scenes-")
        prompts = [f"{stem}-eval-{i:03d}" for i in range(profile.evaluation)]
        common = dict(zip(prompts, np.exp(rng.normal(-3, 0.3, len(prompts))), strict=True))
        small = task.steps == 8
        plans = {}
        for index, (name, factor) in enumerate(factors.items()):
            if name == "exhaustive" and not small:
                continue
            length = task.fewer_steps() if name == "fewer_steps" else task.steps
            low = min(index + 2, length)
            plan = f"fp32*{length}" if name == "fewer_steps" else f"w4a4*{low}"
            if low < length and name != "fewer_steps":
                plan += f" fp32*{length - low}"
            plans[name] = plan
            paid = {"evaluations": 2 + index, "nfe": 100 + index, "nfe_plain": 200 + 2 * index}
            allocations.append(
                task.columns()
                | {"allocator": name, "status": "ok", "reason": "", "plan": plan, "cost": 1.0}
                | {"budget": 1.0, "speedup": task.target_speedup, "error": 0.05 * factor}
                | {"predicted_error": np.nan, "lower_bound": np.nan, **paid, "seconds": 0.1}
                | {"measuring_seconds": 1.0, "optimum_error": 0.05 if small else np.nan}
                | {"regret": factor - 1 if small else np.nan}
            )
            for prompt in prompts:
                error = factor * common[prompt] * np.exp(rng.normal(0, noise))
                values = dict.fromkeys(METRICS, 0.5) | {"latent_rmse": error}
                where = {"prompt_id": prompt, "language": "en", "seed": 0}
                for metric, value in values.items():
                    told = {**where, "metric": metric, "value": value}
                    plan_of = {"allocator": name, "plan": plan, "speedup": task.target_speedup}
                    scores.append(task.columns() | plan_of | told)
                    if name != "gram":
                        continue
                    for native in (True, False):
                        moved = {"kind": "seed", "source": "seed 0", "native": native}
                        worse = value * (1 if native else 1.5)
                        within = {"cost": 1.0, "budget": 1.0, "within_budget": True}
                        transfers.append(
                            task.columns() | plan_of | moved | within | told | {"value": worse}
                        )
        for plan in ("reference", *plans.values()):
            name = picture_name(task.model, task.prompt_set, task.steps, plan)
            pictures[name] = rng.integers(0, 256, (shown, 8, 8, 3), dtype=np.uint8)
        for condition in ("batch 1", "bfloat16"):
            place = {"model": task.model, "prompt_set": task.prompt_set, "steps": task.steps}
            drift += [
                {**place, "condition": condition, "plan": "fp32*8", "prompt_id": prompt, "seed": 0}
                | {"latent_rmse": 1e-7, "smallest_single_error": 1e-3, "ratio": 1e-4}
                for prompt in prompts
            ]
    frames = {
        "allocations": allocations,
        "scores": scores,
        "transfers": transfers,
        "drift": drift,
    }
    tables = {name: pd.DataFrame(rows)[list(COLUMNS[name])] for name, rows in frames.items()}
    groups = {task.group.name: task.prompt_set for task in profile.tasks()}
    manifest = {
        "profile": "quick",
        "key": "0" * 64,
        "tasks": [task.name for task in profile.tasks()],
        "allocators": list(factors),
        "digests": {},
        "titles": {"sd3": "sd3 (made up)", "flux": "flux (made up)"},
        "absent_models": {"sdxl": "no weights"},
        "pictured": {
            group: [f"{name.removeprefix('scenes-')}-eval-{i:03d}" for i in range(shown)]
            for group, name in groups.items()
        },
        "nfe": {"spent": 10, "computed": 10},
        "seconds": 1.0,
        "environment": {"device": "cpu"},
    }
    return SuiteResults(manifest=manifest, pictures=pictures, **tables)


def write_summary(folder: Path, model: str = "sd3") -> None:
    """A report of one level: H1 refuted, H1m supported, H2 undecided, H3 refuted."""
    ends = {"estimate": 1.0, "low": 0.9, "high": 1.1}
    record = {
        "level": "w4a4",
        "residual": ends,
        "residual_verdict": "refuted",
        "mean_square_ratio": ends,
        "mean_square_verdict": "supported",
        "off_diagonal_share": ends,
        "orthogonality_verdict": "undecided",
    }
    scores = [
        {
            "level": "w4a4",
            "metric": "latent_rmse",
            "predictor": predictor,
            "test": {"ratio": ends},
            "verdict": verdict,
        }
        for predictor, verdict in (("sum", "refuted"), ("gram", "supported"))
    ]
    summary = {
        "manifest": {"key": "1" * 64, "title": f"{model} (made up)"},
        "prompts": 4,
        "superposition": [record],
        "scores": scores,
    }
    place = folder / "additivity" / model
    place.mkdir(parents=True)
    (place / "summary.json").write_text(json.dumps(summary))
