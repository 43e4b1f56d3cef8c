"""Table and figure: what each allocator finds on the embedded sd3, and what it pays for it.

At 8 steps the errors of all plans are known (`analysis.every_plan` measures them), so regret,
error over the least possible error minus 1, is exact. Levels fp32, w8a8 and w4a4; costs 1, 0.5
and 0.25: an assumption, proportional to bits, and no measurement. The suite has the rest: roofline
costs, more steps, more models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from analysis.base import FigureFile, Made, Reports, Script, TableFile
from analysis.every_plan import LEVELS, EveryPlan, all_plans, load_every_plan
from analysis.suite_data import CHAOTIC, UNCHOSEN, allocator_label, mark
from tmpdiff_bench.allocators import ALLOCATORS, Allocation, AllocationProblem, regret
from tmpdiff_bench.commands import run
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.problems import RelativeCosts
from tmpdiff_bench.problems.costs import with_reference
from tmpdiff_bench.report.style import Drawing, canvas, house_style
from tmpdiff_bench.report.tables import Table

COSTS = RelativeCosts("bit-proportional", {"fp32": 1.0, "w8a8": 0.5, "w4a4": 0.25})
SPEEDUPS = (1.5, 2.0, 2.5, 3.0)
SHOWN = 2.5  # the speedup of the figure


def tabulated(data: EveryPlan, speedup: float) -> AllocationProblem:
    """The problem whose errors are looked up in the table of all plans."""
    errors = dict(zip(all_plans(data.steps), data.errors.mean(axis=0).tolist(), strict=True))
    plans = PrecisionPlan.singles(LEVELS, data.steps)
    singles = with_reference([errors[plan] for plan in plans], data.steps)
    return AllocationProblem.for_speedup(
        speedup,
        levels=LEVELS,
        step_costs=COSTS.step_costs(LEVELS, data.steps),
        error=errors.__getitem__,
        single_errors=singles,
        gram=data.products.mean(axis=0),
        nfe_per_step=2,
    )


def row(found: Allocation, speedup: float, best: float) -> dict[str, Any]:
    """One line of the table."""
    return {
        "speedup asked": speedup,
        "allocator": found.allocator,
        "speedup": found.speedup,
        "error": found.error,
        "regret": regret(found.error, best),
        "predicted": math.nan if found.predicted_error is None else found.predicted_error,
        "evaluations": found.evaluations,
        "NFE a sample": found.nfe,
        "plan": str(found.plan),
    }


def small(data: EveryPlan) -> tuple[list[dict[str, Any]], dict[str, Allocation]]:
    """All allocators at all speedups on the small task, and those that the figure shows."""
    rows, shown = [], {}
    for speedup in SPEEDUPS:
        problem = tabulated(data, speedup)
        found = {name: allocate(problem) for name, allocate in ALLOCATORS.items()}
        best = found["exhaustive"].error
        rows += [row(allocation, speedup, best) for allocation in found.values()]
        if speedup == SHOWN:
            shown = found
    return rows, shown


def drawing(found: dict[str, Allocation], steps: int) -> Drawing:
    """Least error so far against evaluations, and where each allocator ended."""
    best = found["exhaustive"].error
    with house_style():
        figure, [[ax]] = canvas(1, 1, 3.6)
        for name, allocation in found.items():
            style, label = mark(name), allocator_label(name)
            line = {"where": "post", "color": style["color"], "lw": 1, "alpha": 0.7}
            errors = np.array(allocation.best_so_far())
            counts = np.arange(1, len(errors) + 1)
            known = np.isfinite(errors)
            if known.sum() > 1:
                ax.step(counts[known], errors[known], **line)
            ax.plot(allocation.evaluations, allocation.error, **style, label=label)
        ax.axhline(best, color="#666666", lw=0.8, ls=":")
        ax.set(
            xscale="log",
            yscale="log",
            xlabel="evaluations (plans paid for, single plans included)",
            ylabel="latent RMSE",
            title=f"sd3, {steps} steps, speedup {SHOWN}; dotted: optimum",
        )
        ax.yaxis.set_major_formatter("{x:.2g}")
        ax.yaxis.set_minor_formatter("{x:.2g}")
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return Drawing(
        "allocators",
        "Error against evaluations",
        "Each line is the least error that an allocator has measured so far within the budget, "
        "each mark the plan that it returns. Calibration samples, so nothing is held out here.",
        f"Least latent RMSE against the number of evaluated plans, one line for each of "
        f"{len(found)} allocators, falling to the optimum's dotted line.",
        figure,
    )


def make(reports: Reports) -> Iterator[Made]:
    """Table and figure."""
    data = load_every_plan(reports.folder / "every-plan")
    rows, shown = small(data)
    frame = pd.DataFrame(rows)
    text = frame.astype(object).copy()
    for name in ("speedup", "error", "predicted"):
        text[name] = text[name].map("{:.3g}".format).replace("nan", "-")
    text["regret"] = text["regret"].map("{:.1%}".format)
    text["allocator"] = text["allocator"].str.replace("_", " ")
    yield Table(
        "allocators",
        "Allocators on every plan of a small task",
        frame,
        text.astype(str),
        f"Latent RMSE, means over {len(data.errors)} calibration samples at {data.steps} steps. "
        f"Costs: {COSTS.name} (an assumption). Regret is against the least error of all plans "
        "within the budget.",
    )
    yield drawing(shown, data.steps)


SCRIPT = Script(
    "allocators",
    make,
    inputs=("every-plan/sample-*.safetensors",),
    outputs=(
        TableFile(
            "allocators",
            ("speedup asked", "allocator"),
            elsewhere={"error": CHAOTIC},
            rows_elsewhere=UNCHOSEN,
        ),
        FigureFile("allocators"),
    ),
)

if __name__ == "__main__":
    run(SCRIPT.main)
