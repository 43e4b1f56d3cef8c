"""Cost tables as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from tmpdiff_bench.costs.measure import Measurement, PlanCheck
from tmpdiff_bench.costs.table import NATIVE, Cost, CostTable
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.report.tables import aligned


def roofline_text(table: CostTable) -> str:
    """Level, ms a step, speedup and what bounds it; below, what the hardware lacks."""
    best = table.levels[table.reference].ms
    rows = [
        (
            level,
            f"{cost.ms:.4g}",
            f"{best / cost.ms:.2f}x",
            f"{table.compute_bound[level]:.0%}",
            f"{1 - table.compute_bound[level]:.0%}",
        )
        for level, cost in table.levels.items()
    ]
    setting = table.setting
    head = (
        f"{table.title}\n{setting['tflop']:.1f} TFLOP a step ({setting['rows']} rows); "
        f"weights at bf16 {setting['bf16_weights_gb']} GB of {setting['memory_gb']} GB"
    )
    header = ("level", "ms a step", "speedup", "compute-bound", "memory-bound")
    refused = [f"{level}: not offered, {reason}" for level, reason in table.refused.items()]
    return "\n".join([head, aligned([header, *rows]), *refused])


def measured_text(measurement: Measurement) -> str:
    """Level, ms a step and speedup with 95 % intervals, and the cost of a switch."""
    table = measurement.table
    header = ("level", "ms a step", "95 %", "speedup", "95 %")
    rows = [
        (level, f"{cost.ms:.4g}", _interval(cost), f"{s.ms:.3f}x", _interval(s))
        for (level, cost), s in zip(
            table.levels.items(), measurement.speedups.values(), strict=True
        )
    ]
    head = f"{table.title}\n" + ", ".join(f"{k} {v}" for k, v in table.setting.items())
    switch = f"a switch costs {table.switch.ms:.3g} ms ({_interval(table.switch)})"
    return "\n".join([head, aligned([header, *rows]), switch])


def checks_text(checks: Sequence[PlanCheck]) -> str:
    """Predicted and measured whole-plan speedup side by side, and where their times part."""
    header = ("plan", "predicted", "measured", "95 %", "gap", "together", "switches", "rest")
    rows = []
    for check in checks:
        gap = check.speedup.ms / check.predicted_speedup - 1
        parts = (check.together, check.switches, check.rest)
        rows.append(
            (
                str(check.plan),
                f"{check.predicted_speedup:.3f}x",
                f"{check.speedup.ms:.3f}x",
                _interval(check.speedup),
                f"{gap:+.1%}",
                *(f"{100 * part / check.measured.ms:+.1f}%" for part in parts),
            )
        )
    legend = (
        "gap: measured over predicted speedup. In percent of the measured time: together, what\n"
        "the steps cost more in a process that holds all levels; switches, which the prediction\n"
        "has in it; rest, what neither explains."
    )
    return "\n".join([aligned([header, *rows]), legend])


def comparison_text(measured: CostTable, roofline: CostTable) -> str:
    """A roofline beside measurements of the same model: how much of the bound is reached.

    Raises:
        UsageError: not a measured table and a roofline of one model, or no level in common.
    """
    if (measured.kind, roofline.kind) != ("measured", "roofline"):
        raise UsageError(
            f"compare takes a measured table and a roofline, not {measured.kind} {measured.name} "
            f"and {roofline.kind} {roofline.name}"
        )
    if measured.model != roofline.model:
        raise UsageError(
            f"{measured.name} is of {measured.model}, {roofline.name} of {roofline.model}: "
            "only tables of one model can be compared"
        )
    levels = {name: name.removeprefix(NATIVE) for name in measured.levels}
    both = {name: bare for name, bare in levels.items() if bare in roofline.levels}
    if levels[measured.reference] not in roofline.levels or len(both) < 2:
        raise UsageError(f"{measured.name} and {roofline.name} share too few levels")
    first, bound = measured.levels[measured.reference].ms, roofline.levels
    rows = [
        (
            name,
            f"{bound[bare].ms:.4g}",
            f"{measured.levels[name].ms:.4g}",
            f"{bound[bare].ms / measured.levels[name].ms:.0%}",
            f"{bound[levels[measured.reference]].ms / bound[bare].ms:.2f}x",
            f"{first / measured.levels[name].ms:.2f}x",
        )
        for name, bare in both.items()
    ]
    header = ("level", "roofline ms", "measured ms", "of the bound", "speedup", "measured")
    head = f"{measured.model}: {roofline.device} (roofline), {measured.device} (measured)"
    return "\n".join([head, aligned([header, *rows])])


def _interval(cost: Cost) -> str:
    low, high = cost.interval or (cost.ms, cost.ms)
    return f"{low:.4g} to {high:.4g}"
