"""Recording what the analysis needs: a model's single runs and a design of joint runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from tmpdiff_bench.additivity.design import joint_design
from tmpdiff_bench.trajectory import JointRun, Recording, model_nfe, record_model

COMPLEMENTS = 3  # one-high-step plans per level, for the design-free check
MIXED = 4  # plans that use several low levels


def record_design(
    model: str,
    *,
    folder: Path,
    levels: tuple[str, ...],
    steps: int,
    seed: int,
    joint_plans: int,
    **settings: Any,
) -> Recording:
    """Record (or go on with, or reuse) the additivity experiment of a model in `folder`.

    `joint_plans` per low level; `seed` is the first noise seed, and seeds the design. All else as
    in `record_model`, which also says what is raised.
    """
    return record_model(
        model,
        folder=folder,
        levels=levels,
        steps=steps,
        seed=seed,
        joint=partial(_design, levels, steps, joint_plans, seed),
        **settings,
    )


def planned_nfe(
    model: str,
    *,
    levels: tuple[str, ...],
    steps: int,
    seed: int,
    joint_plans: int,
    **settings: Any,
) -> int:
    """Network evaluations that `record_design` with these arguments takes in all. Raises
    `UsageError` as it does.
    """
    joint = partial(_design, levels, steps, joint_plans, seed)
    return model_nfe(model, levels=levels, steps=steps, seed=seed, joint=joint, **settings)


def _design(levels: tuple[str, ...], steps: int, joint_plans: int, seed: int) -> list[JointRun]:
    plans = joint_design(
        levels,
        steps,
        per_level=joint_plans,
        complements=min(COMPLEMENTS, steps),
        mixed=MIXED if len(levels) > 2 else 0,
        rng=seed,
    )
    return [JointRun(plan.plan, plan.kind, plan.held_out) for plan in plans]
