"""An allocation as text, and as a picture."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tmpdiff_bench.allocators.base import Allocation
    from tmpdiff_bench.allocators.solvers.intervals import Interval

_WIDTH, _PLAN_LINES = 80, 4
_ROW, _HEAD, _AROUND = 0.34, 0.45, 0.75  # inches: a row of intervals, a level's title, the rest
_STEP, _CHARACTER, _BESIDE = 0.13, 0.055, 1.9  # inches: a step at least, what is written into it
_NARROWEST, _WIDEST = 6.4, 14.0
# Okabe and Ito's colours, told apart under every common colour blindness
_COLOURS = {"low": "#0072B2", "split": "#BBBBBB", "refused": "#D55E00", "open": "#F0E442"}
_MEANING = {
    "low": "low: all steps taken",
    "split": "split",
    "refused": "refused: none taken",
    "open": "open: some taken",
}


def summary(allocation: Allocation) -> str:
    """A few lines: what was chosen, how good it is, what it took."""
    plan = textwrap.wrap(str(allocation.plan), _WIDTH - 14)
    if len(plan) > _PLAN_LINES:
        plan = [*plan[: _PLAN_LINES - 1], f"... ({len(allocation.plan)} steps)"]
    read = sum(m.read for m in allocation.trace)
    known = f" ({read} of them read, not measured)" if read else ""
    own = max(allocation.seconds - allocation.oracle_seconds, 0.0)
    rows = {
        "plan": "\n              ".join(plan),
        "cost": f"{allocation.cost:.6g} of at most {allocation.budget:.6g}",
        "error": f"{allocation.error:.6g}, {allocation.error_source}",
    }
    if allocation.predicted_error is not None:
        rows["predicted"] = f"{allocation.predicted_error:.6g}"
    if allocation.gap is not None:
        bound = f"{allocation.lower_bound:.6g}"
        proof = f", {allocation.gap:.2g} of it below: not proven the best" if allocation.gap else ""
        rows["lower bound"] = bound + proof
    rows["evaluations"] = f"{allocation.evaluations} plans{known}"
    rows["NFE"] = f"{allocation.nfe} a sample, sharing prefixes; {allocation.plain_nfe} without"
    rows["seconds"] = f"{own:.3g} own, {allocation.oracle_seconds:.3g} measuring"
    head = f"{allocation.allocator}: speedup {allocation.speedup:.4g}"
    return "\n".join([head, *(f"  {name:<12}{text}" for name, text in rows.items())])


def draw(allocation: Allocation) -> Figure:
    """The tree of intervals where there is one, else best error against evaluations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    head = f"{allocation.allocator}: speedup {allocation.speedup:.4g}, error {allocation.error:.4g}"
    figure.suptitle(head, fontsize=10)
    if not allocation.intervals:
        _progress(figure.subplots(), allocation)
        return figure
    trees: dict[str, list[Interval]] = {}
    for interval in allocation.intervals:
        trees.setdefault(interval.level, []).append(interval)
    rows = [max(i.depth for i in tree) + 1 for tree in trees.values()]
    width = min(max(_BESIDE + _STEP * len(allocation.plan), _NARROWEST), _WIDEST)
    figure.set_size_inches(width, _AROUND + sum(_HEAD + _ROW * count for count in rows))
    axes = figure.subplots(len(trees), 1, squeeze=False, sharex=True, height_ratios=rows)[:, 0]
    for ax, (level, tree) in zip(axes, trees.items(), strict=True):
        _tree(ax, tree, len(allocation.plan), width - _BESIDE)
        ax.set_title(f"intervals at {level}; in them, where there is room, their error", fontsize=8)
    axes[-1].set_xlabel("step")
    return figure


def _tree(ax: Axes, intervals: list[Interval], steps: int, width: float) -> None:
    """Bars span an interval's steps, one row per depth; a dashed edge was not measured itself.

    `width`: inches of all steps.
    """
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    for interval in intervals:
        for first, last in _runs(interval.steps):
            ax.barh(
                interval.depth,
                last - first + 0.92,
                left=first - 0.46,
                color=_COLOURS[interval.decision],
                edgecolor="#222222",
                linestyle="-" if interval.measured else "--",
                linewidth=0.8,
            )
        first, last = max(_runs(interval.steps), key=lambda run: run[1] - run[0])
        text = f"{interval.error:.2g}"
        if len(text) * _CHARACTER <= (last - first + 0.92) / (steps + 0.2) * width:
            ax.text(
                (first + last) / 2,
                interval.depth,
                text,
                ha="center",
                va="center",
                fontsize=6,
                color="white" if interval.decision == "low" else "#222222",
            )
    last_row = max(interval.depth for interval in intervals)
    ax.set(xlim=(-0.6, steps - 0.4), ylim=(last_row + 0.6, -0.6), ylabel="splits")
    ax.set_yticks(range(last_row + 1))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    shown = [d for d in _COLOURS if any(i.decision == d for i in intervals)]
    keys = [Patch(facecolor=_COLOURS[d], edgecolor="#222222", label=_MEANING[d]) for d in shown]
    if not all(i.measured for i in intervals):
        keys.append(Patch(facecolor="white", edgecolor="#222222", ls="--", label="by difference"))
    ax.legend(handles=keys, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)


def _runs(steps: tuple[int, ...]) -> list[tuple[int, int]]:
    """Steps as runs (first, last): the steps offered to a level need not be neighbours."""
    parts = np.split(steps, np.flatnonzero(np.diff(steps) > 1) + 1)
    return [(int(part[0]), int(part[-1])) for part in parts]


def _progress(ax: Axes, allocation: Allocation) -> None:
    """Least error within the budget after each evaluation."""
    from matplotlib.ticker import MaxNLocator

    best = allocation.best_so_far()
    known = [(n, error) for n, error in enumerate(best, 1) if math.isfinite(error)]
    ax.step(*zip(*known, strict=True), where="post", color="#0072B2", marker="o", ms=3)
    if known[0][0] > 1:
        ax.axvspan(0, known[0][0], color="#EEEEEE", label="no plan within the budget yet")
        ax.legend(fontsize=7, loc="upper left", frameon=False)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    ax.set(xlabel="evaluations", ylabel="least error within the budget")
    ax.set_xlim(0, allocation.evaluations + 1)
    ax.set_ylim(bottom=0)
