"""What a choice is worth: made on every other prompt of a recording, judged on the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.additivity.synthetic import recording
from tmpdiff_bench import UsageError, allocate
from tmpdiff_bench.plan import PrecisionPlan

STEPS, SIZE = 6, 64


def made(*, prompts: int = 8, shift: float = 1.0, **options: Any) -> Any:
    """A recording of random deviations; those of held-out prompts `shift` times as large."""
    generator = np.random.default_rng(0)
    scale = np.geomspace(0.02, 0.2, 2 * STEPS)[:, None, None]
    deviations = scale * generator.normal(size=(2 * STEPS, 2 * prompts, SIZE))
    deviations[:, np.arange(2 * prompts) // 2 % 2 == 1] *= shift
    found: Any = recording(prompts=prompts, deviations=deviations, **options)
    found.manifest["workload"]["model"] = "sd3"
    found.manifest["schedule"] = {
        "scheduler": "Euler",
        "sigmas": [1 - step / STEPS for step in range(STEPS)],
        "timesteps": [1000.0 - step for step in range(STEPS)],
    }
    return found


def by_table(found: Any, plan: PrecisionPlan) -> np.ndarray:
    """Means of a recorded plan's errors by held-out prompt, from the recording's table."""
    table = found.table
    rows = table[(table["plan"] == str(plan)) & (table["metric"] == "latent_rmse")]
    means = rows.groupby("prompt_id")["value"].mean()
    return np.asarray([means[f"prompt{i}"] for i in range(1, len(means), 2)])


def test_errors_are_those_of_held_out_prompts() -> None:
    """As the table has them, of rivals that were run."""
    found = made()
    choice = allocate(found, speedup=1.5)
    assert (choice.chosen_on, choice.held_out) == (4, 4)
    assert choice.plan.schedule is not None
    assert choice.plan.schedule.sigmas == tuple(found.manifest["schedule"]["sigmas"])
    assert choice.speedup >= 1.5 - 1e-9
    uniform = {rival.name: rival for rival in choice.rivals if rival.name.startswith("uniform")}
    assert set(uniform) == {"uniform w8a8", "uniform w4a4"}
    for rival in uniform.values():
        assert rival.measured
        errors = by_table(found, rival.plan)
        assert rival.error.estimate == pytest.approx(errors.mean(), rel=1e-5)
        assert rival.error.low < rival.error.estimate < rival.error.high


def test_held_out_prompts_have_no_say() -> None:
    """Whatever their errors are, the same plan is chosen; only its error is another."""
    small, large = (allocate(made(shift=shift), speedup=1.5) for shift in (1.0, 5.0))
    assert small.plan == large.plan
    assert large.error.estimate == pytest.approx(5 * small.error.estimate, rel=1e-5)
    assert large.allocation.error == small.allocation.error


def test_the_text_tells_what_is_known() -> None:
    choice = allocate(made(), speedup=1.5)
    better = [rival.name for rival in choice.rivals if rival.ratio.high < 1]
    assert "uniform w4a4" in better, "its deviations are the largest"
    for shown in (str(choice), choice._repr_html_()):
        assert all(name in shown for name in ("known to be better than", *better))
        assert "an assumption, no measurement" in shown
    assert max(map(len, str(choice).splitlines())) <= 100
    assert "\n" not in repr(choice)


def test_costs_of_a_card_are_those_of_its_table() -> None:
    """By the card's name, or the table's; fp32 as bf16, which a roofline knows."""
    found = made()
    short, long = (
        allocate(found, speedup=1.4, costs=costs)
        for costs in ("rtx4090", "roofline-sd3-rtx4090-1024")
    )
    assert short.plan == long.plan
    assert short.speedup == long.speedup != allocate(found, speedup=1.4).speedup


@pytest.mark.parametrize(
    ("options", "asked", "message"),
    [
        ({"prompts": 1}, {}, "one prompt"),
        ({}, {"allocator": "grm"}, "did you mean 'gram'"),
        ({}, {"costs": "h1000"}, "unknown cost table 'h1000'"),
        ({}, {"costs": "h100"}, "w4a4 does not run on"),
        ({}, {"speedup": 9.0}, "the least possible cost"),
    ],
)
def test_what_cannot_be_is_named(
    options: dict[str, Any], asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        allocate(made(**options), **{"speedup": 1.5, **asked})
