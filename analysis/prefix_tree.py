"""Figure: the prefix tree of a recording's plans, and what sharing prefixes saves.

Left, every node of a small tree: all single plans of two levels and the joint plan `w4a4*3 fp32*3`,
6 steps. Right, network steps a sample at each step of the default experiment, by the tree and by
one loop per plan.
All counts are those that the engine runs by.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes

from analysis.base import FigureFile, Made, Reports, Script
from tmpdiff_bench.commands import run
from tmpdiff_bench.experiment import Experiment
from tmpdiff_bench.plan import PrecisionPlan, nodes_per_step
from tmpdiff_bench.report.style import Drawing, canvas, house_style, level_colours
from tmpdiff_bench.trajectory.design import designed

SMALL = ("fp32", "w4a4")
STEPS = 6
Prefix = tuple[str, ...]


def singles(levels: Sequence[str], steps: int) -> list[PrecisionPlan]:
    """The reference and all single plans."""
    return [PrecisionPlan.uniform(levels[0], steps), *PrecisionPlan.singles(levels, steps)]


def draw_tree(ax: Axes, plans: Sequence[PrecisionPlan]) -> None:
    """One dot a node, one line a network step; leaves are the plans' results."""
    children: dict[Prefix, dict[Prefix, None]] = {}
    for levels in (plan.levels for plan in plans):
        for end in range(len(levels)):
            children.setdefault(levels[:end], {})[levels[: end + 1]] = None
    heights: dict[Prefix, float] = {}

    def place(node: Prefix) -> float:
        below = [place(child) for child in children.get(node, ())]
        # the reference runs straight along the bottom
        heights[node] = below[0] if below else float(sum(n not in children for n in heights))
        return heights[node]

    place(())
    colours = level_colours(SMALL)
    for node, height in heights.items():
        if not node:
            ax.plot(0, height, "o", color="#666666", ms=6)
            continue
        depth, level = len(node), node[-1]
        ax.plot(
            [depth - 1, depth],
            [heights[node[:-1]], height],
            color=colours[level],
            lw=1.6 if level != SMALL[0] else 1.0,
            zorder=1 + (level != SMALL[0]),
        )
        ax.plot(depth, height, "o", color=colours[level], ms=3.5, zorder=3)
    for level in SMALL:
        ax.plot([], [], color=colours[level], label=f"a step at {level}")
    ax.set(xlabel="steps done", xticks=range(STEPS + 1), yticks=[])
    ax.grid(False)
    ax.spines["left"].set_visible(False)
    ax.set_ylim(top=1.3 * max(heights.values()))  # room for the key
    ax.legend(loc="upper left")
    spent = sum(nodes_per_step(plans))
    ax.set_title(f"{len(plans)} plans: {spent} network steps, not {len(plans) * STEPS}")


def draw_counts(ax: Axes, plans: Sequence[PrecisionPlan]) -> None:
    """Network steps a sample, step by step."""
    counts = nodes_per_step(plans)
    ax.bar(range(len(counts)), counts, color=level_colours(SMALL)["fp32"], label="prefix tree")
    ax.axhline(len(plans), color="#D55E00", lw=1.2, label="one loop per plan")
    ax.set(xlabel="step", ylabel="network steps a sample")
    ax.legend(loc="center left", bbox_to_anchor=(0, 0.84))
    plain = len(plans) * len(counts)
    ax.set_title(f"default experiment: {sum(counts):,}, not {plain:,}")


def default_plans() -> list[PrecisionPlan]:
    """What `python -m tmpdiff_bench.additivity --model sd3` runs."""
    default = Experiment("sd3")
    joint = [joint.plan for joint in designed(default)]
    return [*singles(default.levels, default.steps), *joint]


def make(_: Reports) -> Iterator[Made]:
    """The figure."""
    small = [*singles(SMALL, STEPS), PrecisionPlan.parse("w4a4*3 fp32*3")]
    with house_style():
        figure, [[left, right]] = canvas(1, 2, 2.9)
        draw_tree(left, small)
        draw_counts(right, default_plans())
    yield Drawing(
        "prefix-tree",
        "Plans share their first steps",
        "Left: all single plans of two levels and one joint plan, every network step one line. "
        "Right: network steps a sample at each step of the default experiment.",
        "A tree of plans that branches off a straight reference run, beside bars that rise with "
        "the step towards the count of one loop per plan.",
        figure,
    )


SCRIPT = Script("prefix_tree", make, inputs=(), outputs=(FigureFile("prefix-tree"),))

if __name__ == "__main__":
    run(SCRIPT.main)
