"""Allocations as text and as pictures: what they say, and that it can be read."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from tests.allocators.tasks import additive
from tmpdiff_bench.allocators import ALLOCATORS, bisection, knapsack, random_search

SLOW = {"exhaustive", "gram", "greedy_forward", "greedy_backward"}  # at 50 steps


@pytest.mark.parametrize("steps", [1, 9, 400])
def test_what_is_printed_fits_a_screen(steps: int) -> None:
    costs = np.ones((steps, 1)) * [1.0, 0.5]
    singles = np.zeros((steps, 2))
    singles[::2, 1] = 1.0
    text = str(knapsack(additive(costs, 0.75 * steps + 0.5, singles)))
    assert len(text.splitlines()) <= 14
    assert max(map(len, text.splitlines())) <= 80
    assert "knapsack: speedup" in text


def test_pictures_show_what_was_decided() -> None:
    singles = np.zeros((8, 2))
    singles[:, 1] = [8, 1, 1, 1, 1, 1, 1, 9]
    task = additive(np.ones((8, 1)) * [1.0, 0.5], 5.0, singles)
    found = bisection(task)
    leaves = [i for i in found.intervals if i.decision != "split"]
    assert sorted(s for i in leaves for s in i.steps) == list(range(8))
    low = {s for i in leaves if i.decision == "low" for s in i.steps}
    assert low <= {s for s, level in enumerate(found.plan) if level == "b"}
    [axes] = found.plot().axes
    assert len(axes.patches) == len(found.intervals)
    assert random_search(task).plot().axes[0].get_xlabel() == "evaluations"


@pytest.mark.parametrize("steps", [8, 20, 50])
@pytest.mark.parametrize("options", [{}, {"tolerance": 9.0}, {"max_evaluations": 7}])
def test_what_is_written_into_intervals_fits_into_them(steps: int, options: dict[str, Any]) -> None:
    """Also where an interval is of steps apart, as another level left them."""
    weights = np.random.default_rng(0).lognormal(0, 1, steps)
    singles = weights[:, None] * [0.0, 0.011, 1.0]
    budget = steps * (1.0 if "tolerance" in options else 0.5)
    found = bisection(additive(np.tile([1.0, 0.5, 0.25], (steps, 1)), budget, singles), **options)
    figure = found.plot()
    figure.draw_without_rendering()
    written, drawn = 0, set()
    for axes in figure.axes:
        boxes = [patch.get_window_extent() for patch in axes.patches]
        for text in axes.texts:
            x0, y0, x1, y1 = text.get_window_extent().extents
            assert any(b.x0 <= x0 and x1 <= b.x1 and b.y0 <= y0 and y1 <= b.y1 for b in boxes)
        assert all(float(place).is_integer() for place in axes.get_xticks())
        legend = axes.get_legend()
        assert legend is not None
        drawn |= {text.get_text() for text in legend.get_texts()}
        written += len(axes.texts)
    assert written >= len(figure.axes)
    assert ("by difference" in drawn) == (not all(i.measured for i in found.intervals))
    assert all(any(d in text for text in drawn) for d in {i.decision for i in found.intervals})


def test_pictures_say_where_no_plan_was_within_the_budget() -> None:
    singles = np.tile([0.0, 1.0], (4, 1))
    found = knapsack(additive(np.tile([1.0, 0.5], (4, 1)), 2.0, singles))
    [axes] = found.plot().axes
    [shade] = axes.patches
    assert shade.get_label() == "no plan within the budget yet"
    [line] = axes.lines
    assert np.asarray(line.get_xdata()).tolist() == [5]


@pytest.mark.parametrize("steps", [8, 50, 200])
def test_what_all_allocators_print_fits_a_screen(steps: int) -> None:
    """80 columns by 24 lines, for plans that hardly shorten."""
    quick = {8: ALLOCATORS, 50: ALLOCATORS.keys() - SLOW, 200: ("knapsack", "uniform")}
    singles = np.random.default_rng(1).lognormal(0, 1, (steps, 3)) * [0.0, 0.1, 1.0]
    costs = np.tile([1000.0, 123.456789, 0.25], (steps, 1))
    form = np.diag(singles[:, 1:].T.ravel() ** 2)
    task = dataclasses.replace(
        additive(costs, 400.0 * steps, singles), single_errors=singles, gram=form
    )
    for name in quick[steps]:
        lines = str(ALLOCATORS[name](task)).splitlines()
        assert len(lines) <= 24
        assert max(map(len, lines)) <= 80
