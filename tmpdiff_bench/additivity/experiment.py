"""Recording what the analysis needs: a model's single runs and a design of joint runs."""

from __future__ import annotations

from pathlib import Path

from tmpdiff_bench.additivity.design import joint_design
from tmpdiff_bench.experiment import Experiment
from tmpdiff_bench.trajectory import JointRun, Recording, record

COMPLEMENTS = 3  # one-high-step plans per level, for the design-free check
MIXED = 4  # plans that use several low levels


def record_design(
    experiment: Experiment, out: Path, *, joint_plans: int, store: Path | None = None
) -> Recording:
    """Record (or go on with, or reuse) an experiment with a design of joint plans, `joint_plans` of
    each low level; the first noise seed is also that of the design. Raises as `record`.
    """

    def design() -> list[JointRun]:
        levels, steps = experiment.levels, experiment.steps
        plans = joint_design(
            levels,
            steps,
            per_level=joint_plans,
            complements=min(COMPLEMENTS, steps),
            mixed=MIXED if len(levels) > 2 else 0,
            rng=experiment.seed,
        )
        return [JointRun(plan.plan, plan.kind, plan.held_out) for plan in plans]

    return record(experiment, out, store=store, joint=design)
