"""What every allocator takes and returns: a problem, and a plan with the account of its making."""

from __future__ import annotations

import dataclasses
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tmpdiff_bench.allocators.options import number, whole
from tmpdiff_bench.errors import UsageError, unknown
from tmpdiff_bench.plan import PrecisionPlan, nodes_per_step

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]
Choice = tuple[int, ...]  # a plan as indices into the problem's levels
COST_TOLERANCE = 1e-9  # relative: sums of equal costs in another order differ in the last bits
LARGEST = 1e100  # of costs and errors: their sums and squares must not overflow


class InfeasibleBudgetError(UsageError):
    """No plan is within the budget; the message names the least cost that one can have."""


class MeasurementError(UsageError):
    """The oracle returned what is no error (NaN, infinite, negative, or no number).

    `partial` holds the measurements made before it.
    """

    def __init__(self, message: str, partial: Sequence[Measurement]) -> None:
        super().__init__(message)
        self.partial = tuple(partial)


@dataclass(frozen=True)
class Measurement:
    """A plan and its error. `read`: not measured, but taken from the problem's `single_errors`,
    `gram` or `known`; its `error` is NaN where only the inner products were given.
    """

    plan: PrecisionPlan
    error: float
    read: bool = False


@dataclass(frozen=True, eq=False)
class AllocationProblem:
    """Which level shall each of S steps run at, so that the error is least within a budget?

    Args:
        levels: names of the L levels; `levels[0]` is the reference.
        step_costs: (S, L), what a step costs at a level, in any unit; finite and not negative.
        budget: the largest total cost. `for_speedup` builds it from a target.
        error: the measured error of a plan, lower is better, not negative, and 0 for the
            reference plan (errors are distances from its result). A callable may say where its
            values come from by a method `source(plan)`: "measured" is taken for granted.
        single_errors: (S, L) errors of the single plans (one step low), column 0 zero.
        gram: (S (L-1), S (L-1)), mean inner products of terminal deviations, symmetric. Rows are
            ordered by level, then step, as recordings are: level l at step s is (l-1) S + s.
            The square root of s'Gs predicts the error of the plan with cells s.
        known: errors measured before, as an exception's `partial` has them (`knowing`). They are
            not measured again, but count as evaluations where an allocator asks for them.
        nfe_per_step: network evaluations a sample takes at every step (2 for a CFG pair), or at
            each of the S.

    Costs and errors are at most 1e100, so that sums and squares of them are numbers.

    A plan's cost may exceed the budget by 1e-9 of it, so that rounding decides nothing.

    Raises:
        InfeasibleBudgetError: no plan is within the budget.
        UsageError: any other value that cannot be used.
    """

    levels: tuple[str, ...]
    step_costs: Floats
    budget: float
    error: Callable[[PrecisionPlan], float]
    single_errors: Floats | None = None
    gram: Floats | None = None
    known: Mapping[PrecisionPlan, float] = field(default_factory=dict)
    nfe_per_step: int | Sequence[int] = 1
    _rows: list[list[float]] = field(init=False, repr=False)  # of step_costs: quicker to index
    _nfe: tuple[int, ...] = field(init=False, repr=False)  # of each step

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "levels", _names(self.levels))
        if not self.levels or len(set(self.levels)) < len(self.levels):
            raise UsageError(f"levels are one or more different names, got {self.levels!r}")
        PrecisionPlan(self.levels)  # the names are those of a plan
        costs = _array("step_costs", self.step_costs, (None, len(self.levels)), "(S, L)")
        PrecisionPlan.uniform(self.levels[0], len(costs))  # so is the number of steps
        set_(self, "step_costs", costs)
        set_(self, "_rows", costs.tolist())
        if not callable(self.error):
            raise UsageError(
                f"error is {self.error!r}: a function from a PrecisionPlan to its error is needed"
            )
        if self.single_errors is not None:
            singles = _array("single_errors", self.single_errors, costs.shape, "(S, L)")
            if singles[:, 0].any():
                raise UsageError("column 0 of single_errors is the reference's: it must be zero")
            set_(self, "single_errors", singles)
        if self.gram is not None:
            cells = len(costs) * (len(self.levels) - 1)
            gram = _array("gram", self.gram, (cells, cells), "(S (L-1), S (L-1))", signed=True)
            if not np.allclose(gram, gram.T, rtol=1e-6, atol=1e-9 * np.abs(gram).max(initial=0.0)):
                raise UsageError("gram must be symmetric: it holds inner products")
            set_(self, "gram", _frozen((gram + gram.T) / 2))
        set_(self, "_nfe", _each_step(self.nfe_per_step, len(costs)))
        set_(self, "nfe_per_step", self._nfe)
        set_(self, "known", self._checked_known())
        set_(self, "budget", number("budget", self.budget))
        least = math.fsum(costs.min(axis=1))
        if not self.fits(least):
            raise InfeasibleBudgetError(
                f"no plan costs as little as the budget of {self.budget:.6g}: the least possible "
                f"cost is {least:.6g}, a speedup of {_ratio(self.reference_cost, least):.4g}"
            )

    @classmethod
    def for_speedup(
        cls,
        speedup: float,
        *,
        levels: Sequence[str],
        step_costs: ArrayLike,
        error: Callable[[PrecisionPlan], float],
        single_errors: ArrayLike | None = None,
        gram: ArrayLike | None = None,
        known: Mapping[PrecisionPlan, float] | None = None,
        nfe_per_step: int | Sequence[int] = 1,
    ) -> AllocationProblem:
        """The problem whose budget is the reference plan's cost divided by `speedup` (> 0)."""
        speedup, levels = number("speedup", speedup), _names(levels)
        if speedup <= 0:
            raise UsageError(f"a speedup of {speedup} is asked for: it must be positive")
        costs = _array("step_costs", step_costs, (None, len(levels)), "(S, L)")
        return cls(
            levels=levels,
            step_costs=costs,
            budget=math.fsum(costs[:, 0]) / speedup,
            error=error,
            single_errors=None if single_errors is None else np.asarray(single_errors),
            gram=None if gram is None else np.asarray(gram),
            known=known or {},
            nfe_per_step=nfe_per_step,
        )

    @property
    def steps(self) -> int:
        """S."""
        return len(self.step_costs)

    @property
    def reference_cost(self) -> float:
        """Cost of the reference plan."""
        return math.fsum(self.step_costs[:, 0])

    @property
    def cheapest(self) -> Choice:
        """The cheapest level of every step; of equal ones the one named first."""
        return tuple(self.step_costs.argmin(axis=1).tolist())

    def fits(self, cost: float) -> bool:
        """Whether a total cost is within the budget, rounding forgiven."""
        return cost <= forgiving(self.budget)

    def within(self, plan: PrecisionPlan | Sequence[int]) -> bool:
        """Whether a plan, or level indices, are within the budget."""
        return self.fits(self.cost(plan))

    def plan(self, choice: Iterable[int]) -> PrecisionPlan:
        """The plan of level indices. Raises `UsageError` for others than 0..L-1, one a step."""
        return PrecisionPlan(tuple(map(self.levels.__getitem__, self.indices(choice))))

    def choice(self, plan: PrecisionPlan) -> Choice:
        """Level indices of a plan. Raises `UsageError` for another length or unknown levels."""
        if not isinstance(plan, PrecisionPlan):
            raise UsageError(f"{plan!r} is no PrecisionPlan: text is read by PrecisionPlan.parse")
        if len(plan) != self.steps:
            raise UsageError(f"plan {plan} has {len(plan)} steps, the problem has {self.steps}")
        places = {level: index for index, level in enumerate(self.levels)}
        for level in dict.fromkeys(plan.levels):
            if level not in places:
                raise unknown("level", level, self.levels)
        return tuple(map(places.__getitem__, plan.levels))

    def indices(self, choice: Iterable[int]) -> Choice:
        """Level indices, checked. Raises `UsageError` unless there is one of 0..L-1 a step."""
        try:
            found = tuple(choice)
            if set(map(type, found)) != {int}:
                found = tuple(map(operator.index, found))
        except TypeError:
            raise UsageError(
                f"{choice!r} is no choice of levels: a plan, or {self.steps} level indices"
            ) from None
        used = set(found)
        if len(found) != self.steps or min(used) < 0 or max(used) >= len(self.levels):
            raise UsageError(
                f"{found!r} is no choice of levels: {self.steps} indices from 0 to "
                f"{len(self.levels) - 1} are needed, one a step"
            )
        return found

    @property
    def singles(self) -> list[PrecisionPlan]:
        """The single plans (one step low), by level, then step."""
        return PrecisionPlan.singles(self.levels, self.steps)

    def cost(self, plan: PrecisionPlan | Sequence[int]) -> float:
        """Total cost of a plan, or of level indices; correctly rounded, whatever the order."""
        choice = self.choice(plan) if isinstance(plan, PrecisionPlan) else self.indices(plan)
        return math.fsum(map(operator.getitem, self._rows, choice))

    def speedup(self, cost: float) -> float:
        """The reference plan's cost over `cost`; infinite where only `cost` is zero."""
        return _ratio(self.reference_cost, cost)

    def predicted_square(self, choice: Sequence[int]) -> float:
        """S'Gs of level indices. Raises `UsageError` where there is no `gram`."""
        gram, cells = self.need_gram("the prediction"), self.plan(choice).cells(self.levels)
        return float(gram[np.ix_(cells, cells)].sum())

    def need_gram(self, who: str) -> Floats:
        """`gram`. Raises `UsageError` naming it where it is missing."""
        if self.gram is None:
            raise UsageError(
                f"{who} needs the problem's gram, the (S (L-1), S (L-1)) mean inner products of "
                "terminal deviations; recordings and live problems of latent_rmse give them "
                "(problems.from_recording, live_problem): the root of s'Gs is an RMSE"
            )
        return self.gram

    def nfe(self, plans: Sequence[PrecisionPlan]) -> int:
        """Network evaluations a sample for plans that share their prefixes, each run once.

        The fewest there can be: every state that two plans share is taken to be kept until the
        second asks for it. An engine whose memory is bounded may spend more, and no run spends
        more than `plain_nfe`.
        """
        each = zip(nodes_per_step(plans), self._nfe, strict=True)
        return sum(nodes * nfe for nodes, nfe in each)

    def plain_nfe(self, plans: Iterable[PrecisionPlan]) -> int:
        """Network evaluations a sample for different plans, each run from its first step."""
        return len(set(plans)) * sum(self._nfe)

    def knowing(self, measurements: Iterable[Measurement]) -> AllocationProblem:
        """The same problem, with what was measured before, such as an exception's `partial`."""
        found = dict(self.known)
        for m in measurements:
            if not isinstance(m, Measurement):
                raise UsageError(
                    f"{m!r} is no Measurement: hand on an exception's `partial`, or known={{...}}"
                )
            if not math.isnan(m.error):
                found[m.plan] = m.error
        return dataclasses.replace(self, known=found)

    def _checked_known(self) -> dict[PrecisionPlan, float]:
        if not isinstance(self.known, Mapping):
            raise UsageError(f"known is {self.known!r}: a mapping from plans to errors is needed")
        for plan in self.known:
            try:
                self.choice(plan)
            except UsageError as error:
                raise UsageError(f"known: {error}") from None
        return {
            plan: number(f"known: the error of plan {plan}", error, 0, LARGEST)
            for plan, error in self.known.items()
        }


@dataclass(frozen=True, eq=False)
class Allocation:
    """The plan that an allocator chose, and what it took to choose it.

    `cost` is within the budget; `speedup` is the reference's cost over it. `error` is what the
    problem's `error` said when asked for this plan, and `error_source` whether that was measured
    (a recording predicts the errors of plans it does not hold). `predicted_error`: what the
    allocator reckoned
    (None: it reckons nothing). `lower_bound`: no plan within the budget has a smaller predicted
    error (`exhaustive`: a smaller error); None where nothing is proven. Predictions lie as far as
    errors do not add up as the allocator assumes; the bound is on predictions, never on errors.

    `evaluations` counts the distinct plans whose results were used, those read from
    `single_errors`, `gram` or `known` included: somebody paid for them. `trace` holds them in
    order. `nfe` is what they take a sample, in network evaluations, if every state that two of them
    share is computed once and kept (`AllocationProblem.nfe`: an ideal that a bounded memory may not
    reach); `plain_nfe` if each runs from its first step. Both include the reference run, which
    every error needs, and runs that were read, not measured now. `seconds` is the wall time of
    the call, of which `oracle_seconds` went by inside `error`. `citation` is BibTeX. `intervals`
    is what `bisection` measured and decided.
    """

    allocator: str
    plan: PrecisionPlan
    cost: float
    budget: float
    speedup: float
    error: float
    error_source: str
    predicted_error: float | None
    lower_bound: float | None
    evaluations: int
    nfe: int
    plain_nfe: int
    trace: tuple[Measurement, ...]
    seconds: float
    oracle_seconds: float
    citation: str
    intervals: tuple[Any, ...] = ()
    _problem: AllocationProblem | None = field(default=None, repr=False)

    @property
    def gap(self) -> float | None:
        """How far the prediction may be above the least one, as a share of it; 0 is proven best."""
        if self.lower_bound is None:
            return None
        value = self.error if self.predicted_error is None else self.predicted_error
        return 0.0 if value <= self.lower_bound else 1 - self.lower_bound / value

    def best_so_far(self) -> list[float]:
        """Least measured error of a plan within the budget after each evaluation; infinite before
        there is one.
        """
        problem = self._problem
        errors = (
            m.error if problem and m.error >= 0 and problem.within(m.plan) else math.inf
            for m in self.trace  # those that were not measured are NaN
        )
        return list(itertools.accumulate(errors, min))

    def __str__(self) -> str:
        """A few lines of at most 80 columns."""
        from tmpdiff_bench.allocators.drawing import summary

        return summary(self)

    def plot(self) -> Figure:
        """Draw how the plan was found (matplotlib): for `bisection` the tree of intervals, with
        what was measured and decided; for all others the best error against evaluations.
        """
        from tmpdiff_bench.allocators.drawing import draw

        return draw(self)


def forgiving(budget: float) -> float:
    """The largest cost that is within a budget, rounding forgiven."""
    return budget + COST_TOLERANCE * abs(budget)


def along(table: Floats, choice: Sequence[int]) -> float:
    """The sum over steps of what a table (S, L) has at a plan's levels."""
    return math.fsum(table[step, level] for step, level in enumerate(choice))


def regret(error: float, optimum: float) -> float:
    """How far an error is above the least one, as a share of that; NaN where that is unknown (NaN),
    or zero and the error is not.
    """
    if error == optimum:
        return 0.0
    return error / optimum - 1 if optimum > 0 else math.nan


class Allocator(Protocol):
    """Every allocator; options are keyword-only and have defaults."""

    def __call__(self, problem: AllocationProblem, /) -> Allocation: ...


def _array(
    name: str, value: Any, shape: tuple[int | None, ...], words: str, *, signed: bool = False
) -> Floats:
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} must be numbers of shape {words}: {error}") from error
    fits = array.ndim == len(shape) and all(
        wanted in (None, size) for wanted, size in zip(shape, array.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("S" if size is None else str(size) for size in shape)
        raise UsageError(f"{name} has shape {array.shape}, expected {words} = ({wanted})")
    if not np.isfinite(array).all() or (not signed and (array < 0).any()):
        raise UsageError(f"{name} must be finite{'' if signed else ' and not negative'}")
    most = LARGEST**2 if signed else LARGEST
    if (largest := np.abs(array).max(initial=0.0)) > most:
        raise UsageError(
            f"{name} goes up to {largest:.3g}: choose a unit in which it stays below {most:.0e}"
        )
    return _frozen(array)


def _frozen(array: Floats) -> Floats:
    array.flags.writeable = False
    return array


def _names(levels: Any) -> tuple[str, ...]:
    if isinstance(levels, str) or not isinstance(levels, Iterable):
        raise UsageError(
            f"levels is {levels!r}: a sequence of names is needed, such as ('bf16', 'w4a4')"
        )
    return tuple(levels)


def _each_step(nfe: Any, steps: int) -> tuple[int, ...]:
    each = tuple(nfe) if isinstance(nfe, Iterable) and not isinstance(nfe, str) else (nfe,) * steps
    if len(each) != steps:
        raise UsageError(
            f"nfe_per_step has {len(each)} numbers for {steps} steps: one is needed "
            "for all, or one for each"
        )
    counts = tuple(whole("nfe_per_step", value, 0) for value in each)
    if not any(counts):  # of a run that begins later, the first steps take none
        raise UsageError("nfe_per_step is 0 for every step: at least one evaluates the network")
    return counts


def _ratio(above: float, below: float) -> float:
    if below == 0:
        return 1.0 if above == 0 else math.inf
    return above / below
