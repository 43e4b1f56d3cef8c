"""Recordings made of known vectors, without a model."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.trajectory.design import joint_design

if TYPE_CHECKING:
    from tmpdiff_bench.trajectory.recording import Recording

Vectors = NDArray[np.float64]
Combine = Callable[[Vectors, Vectors, int], Vectors]
"""(deviations (K, n, D), membership (K,), number of the plan) -> joint error (n, D)."""


def superpose(deviations: Vectors, used: Vectors, plan: int) -> Vectors:
    return np.tensordot(used, deviations, axes=1)


def recording(
    *,
    combine: Combine = superpose,
    deviations: Vectors | None = None,
    levels: tuple[str, ...] = ("fp32", "w8a8", "w4a4"),
    steps: int = 6,
    prompts: int = 8,
    seeds: int = 2,
    size: int = 64,
    per_level: int = 13,
    complements: int = 2,
    mixed: int = 4,
    replicates: Vectors | None = None,
    rng: int = 0,
) -> Recording:
    """Make a recording whose joint errors are `combine` of its deviations (random by default)."""
    generator = np.random.default_rng(rng)
    samples = tuple((f"prompt{i}", seed) for i in range(prompts) for seed in range(seeds))
    if deviations is None:
        scale = np.geomspace(0.02, 0.2, (len(levels) - 1) * steps)[:, None, None]
        deviations = scale * generator.normal(size=(len(scale), len(samples), size))
    singles = deviations.astype(np.float32)
    design = joint_design(
        levels, steps, per_level=per_level, complements=complements, mixed=mixed, rng=rng
    )
    cells = [(level, step) for level in levels[1:] for step in range(steps)]
    used = np.array([[p.plan[s] == level for level, s in cells] for p in design], dtype=np.float64)
    exact = singles.astype(np.float64)
    joint = np.stack([combine(exact, row, i) for i, row in enumerate(used)])
    runs = [PrecisionPlan.single(levels[0], level, step, steps) for level, step in cells]
    frames = []
    for kind, plans, errors in (
        ("single", runs, exact),
        ("joint", [p.plan for p in design], joint),
    ):
        squares = np.mean(errors**2, axis=2)
        for metric, values in (
            ("latent_rmse", np.sqrt(squares)),
            ("latent_mse", squares),
            ("one_minus_ssim", 1 - np.exp(-np.sqrt(squares))),
        ):
            for plan, row in zip(plans, values, strict=True):
                frame = pd.DataFrame(samples, columns=["prompt_id", "seed"])
                frames.append(frame.assign(plan=str(plan), kind=kind, metric=metric, value=row))
    shape = (len(levels) - 1, steps)
    made = SimpleNamespace(
        levels=levels,
        steps=steps,
        samples=samples,
        reference=np.zeros(singles.shape[1:], dtype=np.float32),
        singles=singles.reshape(*shape, *singles.shape[1:]),
        replicates=None
        if replicates is None
        else replicates.astype(np.float32).reshape(*shape, *replicates.shape[1:]),
        replicate_rows=np.arange(0 if replicates is None else replicates.shape[1]),
        plans=tuple(p.plan for p in design),
        kinds=tuple(p.kind for p in design),
        held_out=np.array([p.held_out for p in design], dtype=np.bool_),
        joint=joint.astype(np.float32),
        floor=np.full(len(samples), 1e-5, dtype=np.float32),
        table=pd.concat(frames, ignore_index=True).assign(model="toy", dataset="toy"),
        manifest={"title": "toy", "workload": {"steps": steps}, "nfe": {"per_step": [1] * steps}},
    )
    return cast("Recording", made)
