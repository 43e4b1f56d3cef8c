"""A plan that is chosen on some of a recording's prompts, and what it is worth on the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tmpdiff_bench.allocators import Allocation, AllocationProblem, get_allocator
from tmpdiff_bench.costs import COSTED_AS, load_costs, shipped
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.plan import PlanSchedule, PrecisionPlan
from tmpdiff_bench.problems import RelativeCosts, from_recording
from tmpdiff_bench.report.pages import notebook_html
from tmpdiff_bench.report.style import INK, MUTED, Drawing, canvas, house_style
from tmpdiff_bench.report.tables import aligned, enumerate_words, interval
from tmpdiff_bench.statistics import Interval, paired_interval
from tmpdiff_bench.trajectory import Recording

BITS = "bits"  # between models and devices times differ; this says only how many are multiplied
_BITS = dict.fromkeys(("fp32", "bf16", "fp16", "w8a16", "w4a16"), 1.0)
_BITS |= {"w8a8": 0.5, "w4a8": 0.5, "fp8": 0.5, "mxfp8": 0.5, "mxfp6": 0.375}
_BITS |= {"w4a4": 0.25, "mxfp4": 0.25, "nvfp4": 0.25}


@dataclass(frozen=True)
class Judged:
    """A plan on held-out prompts: `error` is its mean latent RMSE, `ratio` that of the chosen plan
    as a share of it (geometric mean over prompts), each with a 95 % interval. `measured`: its runs
    were recorded; else its deviation is predicted, as the sum of those of its single steps.
    """

    name: str
    plan: PrecisionPlan
    speedup: float
    error: Interval
    ratio: Interval
    measured: bool


@dataclass(frozen=True, eq=False)
class Choice:
    """What `allocate` found: the plan, its error on `held_out` prompts, and its rivals there, all
    within the same budget. `allocation` tells how it was chosen, on `chosen_on` prompts.
    """

    plan: PrecisionPlan
    judged: Judged
    rivals: tuple[Judged, ...]
    chosen_on: int
    held_out: int
    costs: str
    allocation: Allocation

    @property
    def error(self) -> Interval:
        """Mean latent RMSE on held-out prompts, with its 95 % interval."""
        return self.judged.error

    @property
    def speedup(self) -> float:
        """By the cost table."""
        return self.judged.speedup

    def frame(self) -> pd.DataFrame:
        """The chosen plan and its rivals, as a table of words."""
        return pd.DataFrame(
            {
                "plan": judged.name,
                "speedup": f"{judged.speedup:.2f}",
                "held-out latent RMSE": interval(judged.error),
                "": "measured" if judged.measured else "predicted",
                "choice / rival": "" if judged is self.judged else interval(judged.ratio),
            }
            for judged in (self.judged, *self.rivals)
        )

    @property
    def verdict(self) -> str:
        """Which rivals the choice is known to be better than, and worse."""
        better = [rival.name for rival in self.rivals if rival.ratio.high < 1]
        worse = [rival.name for rival in self.rivals if rival.ratio.low > 1]
        if not self.rivals:
            return "no rival is within the budget"
        if not better and not worse:
            return "not known to be better than any of these: more prompts would tell"
        told = [
            f"{word} than {enumerate_words(names)}"
            for word, names in (("better", better), ("worse", worse))
            if names
        ]
        return f"known to be {' and '.join(told)}"

    @property
    def title(self) -> str:
        """The plan and its speedup, in a line."""
        return f"{self.plan}: speedup {self.speedup:.2f}"

    def __repr__(self) -> str:
        return f"Choice({self.title}, held-out latent RMSE {interval(self.error)})"

    def __str__(self) -> str:
        """A screen of at most 100 columns."""
        frame = self.frame()
        return "\n".join(
            [
                self.title,
                f"by {self.costs}",
                f"chosen by {self.allocation.allocator} on {self.chosen_on} prompts, judged on "
                f"{self.held_out} others; 95 % intervals",
                "",
                aligned([tuple(frame.columns), *frame.itertuples(index=False, name=None)]),
                "",
                self.verdict,
            ]
        )

    def _repr_html_(self) -> str:
        return notebook_html(
            f"{self.title} by {self.costs}; {self.verdict}", self.frame(), [self.drawing()]
        )

    def drawing(self) -> Drawing:
        """Held-out errors with their intervals, the chosen plan first."""
        shown = (self.judged, *self.rivals)
        with house_style():
            figure, [[ax]] = canvas(1, 1, 0.8 + 0.35 * len(shown))
            for row, judged in enumerate(shown):
                colour, error = MUTED if row else INK, judged.error
                ax.plot([error.low, error.high], [row, row], color=colour)
                ax.plot(error.estimate, row, "o", color=colour, markersize=5)
            ax.set_yticks(range(len(shown)), [judged.name for judged in shown])
            ax.invert_yaxis()
            ax.set_xlim(left=0)
            ax.set_xlabel("latent RMSE on held-out prompts")
        caption = f"Errors on {self.held_out} prompts that the choice has not seen, 95 % intervals."
        return Drawing("choice", "The choice and its rivals", caption, caption, figure)


def allocate(
    recording: Recording, *, speedup: float, costs: str = BITS, allocator: str = "gram"
) -> Choice:
    """The plan of least error at a speedup: chosen on every other prompt of a recording, judged on
    the rest, beside the uniform levels and the first-and-last plan within the same budget.

    `costs`: a cost table's name or file, a card's name (`h100`: the roofline of a model like the
    recorded one), or "bits": in proportion to the bits multiplied, an assumption. `allocator` is a
    name of `tmpdiff_bench.allocators`. Plans that were not recorded are judged by the sum of the
    deviations of their single steps. Fewer steps, and reuse, take runs of their own.

    >>> import tempfile, tmpdiff_bench as tb
    >>> small = tb.Experiment("sd3", steps=3, levels=("fp32", "w4a4"), num_prompts=4, num_seeds=1)
    >>> choice = allocate(tb.record(small, tempfile.mkdtemp()), speedup=1.3)
    >>> len(choice.plan), choice.plan.count("w4a4"), [rival.name for rival in choice.rivals]
    (3, 1, ['uniform w4a4'])

    Raises:
        UsageError: fewer than two prompts, an unknown name, a level without a cost, an impossible
            speedup (`InfeasibleBudgetError`).
    """
    choose = get_allocator(allocator)
    prompts = list(dict.fromkeys(prompt for prompt, _ in recording.samples))
    if len(prompts) < 2:
        raise UsageError("the recording has one prompt: a plan is chosen on some, judged on others")
    seen = [i for i, (prompt, _) in enumerate(recording.samples) if prompt in set(prompts[::2])]
    unseen = [i for i in range(len(recording.samples)) if i not in set(seen)]
    problem = problem_of(recording, costs, speedup, samples=seen)
    allocation = choose(problem)
    plan, names = allocation.plan, {}
    for level in problem.levels[1:]:
        names[PrecisionPlan.uniform(level, recording.steps)] = f"uniform {level}"
    shipped = get_allocator("first_last")(problem).plan
    names.setdefault(shipped, f"first and last: {shipped}")
    errors, _ = _held_out(recording, plan, unseen)

    def judged(name: str, other: PrecisionPlan) -> Judged:
        theirs, measured = _held_out(recording, other, unseen)
        ratio = Interval()
        if errors.all() and theirs.all():
            logs = paired_interval(np.log(errors) - np.log(theirs))
            with np.errstate(over="ignore"):  # two prompts may leave no upper limit
                ratio = Interval(*np.exp([logs.estimate, logs.low, logs.high]).tolist())
        gain = problem.speedup(problem.cost(other))
        return Judged(name, other, gain, paired_interval(theirs), ratio, measured)

    return Choice(
        plan=PrecisionPlan(plan.levels, _schedule(recording)),
        judged=judged(str(plan), plan),
        rivals=tuple(
            judged(name, other)
            for other, name in names.items()
            if other != plan and problem.within(other)
        ),
        chosen_on=len(prompts[::2]),
        held_out=len(prompts[1::2]),
        costs=words_of(costs),
        allocation=allocation,
    )


def problem_of(
    recording: Recording, costs: str, speedup: float, *, samples: Sequence[int] | None = None
) -> AllocationProblem:
    """The problem of a recording, by costs as `allocate` takes them."""
    specs = recording.manifest.get("level_specs", {})
    own = next((x for x in recording.levels if "own" in (specs.get(x) or {})), None)
    if costs == BITS:
        if own is not None:
            raise UsageError(
                f"{own} is a level of your own, whose bits are not known: name a cost table by "
                "costs= (--costs), as `python -m tmpdiff_bench.costs measure --level` makes them"
            )
        table = RelativeCosts(BITS, _BITS)
    else:
        roofline = f"roofline-{recording.manifest['workload']['model']}-{costs}-1024"
        known = load_costs(roofline if roofline in shipped() else costs)
        named = {x: x if x in known.levels else COSTED_AS.get(x, x) for x in recording.levels}
        each = known.step_costs(list(named.values()), 1)[0].tolist()
        table = RelativeCosts(known.name, dict(zip(named, each, strict=True)))
    return from_recording(recording, table, speedup=speedup, samples=samples)


def words_of(costs: str) -> str:
    """What a speedup is by."""
    if costs == BITS:
        return "bits multiplied, 16 at the reference (an assumption, no measurement)"
    return f"cost table {costs}, for the card and size that it names (fp32 as bf16)"


def _schedule(recording: Recording) -> PlanSchedule:
    """The noise levels that a recording's runs had."""
    told = recording.manifest["schedule"]
    sigmas = None if told["sigmas"] is None else tuple(told["sigmas"])
    return PlanSchedule(told["scheduler"], sigmas, tuple(told["timesteps"]))


def _held_out(
    recording: Recording, plan: PrecisionPlan, samples: Sequence[int]
) -> tuple[NDArray[np.float64], bool]:
    """Latent RMSE of a plan by prompt, and whether it was measured."""
    cells = plan.cells(recording.levels)
    if measured := plan in recording.plans:
        deviations = recording.joint[recording.plans.index(plan)][samples]
    else:
        singles = recording.singles.reshape(-1, *recording.reference.shape)
        deviations = singles[cells][:, samples].sum(axis=0)
    errors = np.sqrt(np.square(deviations, dtype=np.float64).mean(axis=1))
    by = pd.Series(errors).groupby([recording.samples[i][0] for i in samples], sort=False)
    return by.mean().to_numpy(), measured or len(cells) < 2
