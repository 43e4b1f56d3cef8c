"""Table and figure: what each allocator finds on the embedded sd3, and what it pays for it.

    python -m analysis.allocators [--live-samples 4] [--out reports]

At 8 steps the errors of all plans are known (`analysis.every_plan` measures them), so regret,
error over the least possible error minus 1, is exact. At 20 steps plans are measured live on
calibration prompts, and there is no optimum to compare with (`--live-samples 0` leaves this out).
Levels fp32, w8a8 and w4a4; costs 1, 0.5 and 0.25: an assumption, proportional to bits, and no
measurement. Writes `allocators.csv`, `.md`, `.tex`, `.svg` and `.png`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from analysis.every_plan import LEVELS, STEPS, EveryPlan, all_plans, load_every_plan, workload
from tmpdiff_bench.additivity.style import Drawing, canvas, house_style
from tmpdiff_bench.allocators import ALLOCATORS, Allocation, AllocationProblem
from tmpdiff_bench.commands import ArgumentParser, run
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.problems import RelativeCosts, live_problem

COSTS = RelativeCosts("bit-proportional", {"fp32": 1.0, "w8a8": 0.5, "w4a4": 0.25})
SPEEDUPS = (1.5, 2.0, 2.5, 3.0)
LIVE_STEPS, LIVE_SPEEDUPS = 20, (1.5, 2.0, 2.5)
SHOWN = 2.5  # the speedup of the figure
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#222222", "#999999")
MARKERS = "osD^vP*X<>p"


def tabulated(data: EveryPlan, speedup: float) -> AllocationProblem:
    """The problem whose errors are looked up in the table of all plans."""
    errors = dict(zip(all_plans(), data.errors.mean(axis=0).tolist(), strict=True))
    singles = np.zeros((STEPS, len(LEVELS)))
    for step in range(STEPS):
        for index, level in enumerate(LEVELS[1:], 1):
            singles[step, index] = errors[PrecisionPlan.single(LEVELS[0], level, step, STEPS)]
    return AllocationProblem.for_speedup(
        speedup,
        levels=LEVELS,
        step_costs=COSTS.step_costs(LEVELS, STEPS),
        error=errors.__getitem__,
        single_errors=singles,
        gram=data.products.mean(axis=0),
        nfe_per_step=2,
    )


def row(found: Allocation, speedup: float, best: float) -> dict[str, Any]:
    """One line of the table."""
    return {
        "steps": len(found.plan),
        "speedup asked": speedup,
        "allocator": found.allocator,
        "speedup": found.speedup,
        "error": found.error,
        "regret": found.error / best - 1,
        "predicted": math.nan if found.predicted_error is None else found.predicted_error,
        "evaluations": found.evaluations,
        "NFE a sample": found.nfe,
        "plan": str(found.plan),
    }


def small(data: EveryPlan) -> tuple[list[dict[str, Any]], dict[str, Allocation]]:
    """All allocators at all speedups on the task of 8 steps, and those that the figure shows."""
    rows, shown = [], {}
    for speedup in SPEEDUPS:
        problem = tabulated(data, speedup)
        found = {name: allocate(problem) for name, allocate in ALLOCATORS.items()}
        best = found["exhaustive"].error
        rows += [row(allocation, speedup, best) for allocation in found.values()]
        if speedup == SHOWN:
            shown = found
    return rows, shown


def live(samples: int) -> list[dict[str, Any]]:
    """The task of 20 steps; plans measured before are at hand for the next allocator."""
    pipeline, work = workload(LIVE_STEPS, 0, samples)
    with tqdm(desc="20 steps", unit="NFE") as bar:
        problem = live_problem(
            pipeline,
            work,
            COSTS,
            levels=LEVELS,
            speedup=1.0,
            record_singles=True,
            on_nfe=bar.update,
        )
        # what one has measured the next need not run again; accounts are of each one alone
        problem = dataclasses.replace(problem, error=functools.cache(problem.error))
        names = [name for name in ALLOCATORS if name != "exhaustive"]  # 3^20 plans
        rows = []
        for speedup in LIVE_SPEEDUPS:
            task = dataclasses.replace(problem, budget=problem.reference_cost / speedup)
            rows += [row(ALLOCATORS[name](task), speedup, math.nan) for name in names]
    return rows


def drawing(found: dict[str, Allocation]) -> Drawing:
    """Least error so far against evaluations, and where each allocator ended."""
    best = found["exhaustive"].error
    with house_style():
        figure, [[ax]] = canvas(1, 1, 3.6)
        for i, (name, allocation) in enumerate(found.items()):
            colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i]
            errors = np.array(allocation.best_so_far())
            counts = np.arange(1, len(errors) + 1)
            known = np.isfinite(errors)
            if known.sum() > 1:
                ax.step(counts[known], errors[known], where="post", color=colour, lw=1, alpha=0.7)
            ax.plot(
                allocation.evaluations,
                allocation.error,
                marker,
                color=colour,
                ms=6,
                mec="white",
                mew=0.5,
                ls="",
                label=name.replace("_", " "),
            )
        ax.axhline(best, color="#666666", lw=0.8, ls=":")
        ax.set(
            xscale="log",
            yscale="log",
            xlabel="evaluations (plans paid for, single plans included)",
            ylabel="latent RMSE",
            title=f"sd3, {STEPS} steps, speedup {SHOWN}; dotted: optimum",
        )
        ax.yaxis.set_major_formatter("{x:.2g}")
        ax.yaxis.set_minor_formatter("{x:.2g}")
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return Drawing("allocators", "Error against evaluations", "", "", figure)


def main(argv: Sequence[str]) -> None:
    """Write table and figure."""
    parser = ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--live-samples", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("reports"))
    options = parser.parse_args(argv)
    data = load_every_plan(options.out / "allocators")
    if not len(data.errors):
        raise UsageError(
            f"no table of all plans in {options.out / 'allocators'}: "
            "run python -m analysis.every_plan first"
        )
    rows, shown = small(data)
    if options.live_samples > 0:
        rows += live(options.live_samples)
    frame = pd.DataFrame(rows)
    frame.to_csv(options.out / "allocators.csv", index=False)
    text = frame.copy()
    for name in ("speedup", "error", "predicted"):
        text[name] = text[name].map("{:.3g}".format).replace("nan", "-")
    text["regret"] = text["regret"].map("{:.1%}".format).replace("nan%", "-")
    lines = [text.columns, ["---"] * text.shape[1], *text.to_numpy()]
    markdown = "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
    note = (
        f"Latent RMSE, means over {len(data.errors)} calibration samples at {STEPS} steps and "
        f"{options.live_samples} at {LIVE_STEPS}. Costs: {COSTS.name} (an assumption). Regret is "
        "against the least error of all plans within the budget.\n\n"
    )
    (options.out / "allocators.md").write_text(note + markdown, encoding="utf-8")
    tex = text.to_latex(index=False, escape=True)
    (options.out / "allocators.tex").write_text(tex, encoding="utf-8")
    figure = drawing(shown)
    for kind in ("svg", "png"):
        (options.out / f"allocators.{kind}").write_bytes(figure.to_bytes(kind))
    print(text.drop(columns="plan").to_string(index=False))


if __name__ == "__main__":
    run(main)
