"""Plans on all tiny pipelines: against the plain call, and against the same plan by hand."""

from __future__ import annotations

import pytest
import torch

from tests.deploy.conftest import build, by_hand, call, traces
from tests.tiny import TINY, WARNINGS, each
from tmpdiff_bench import deploy
from tmpdiff_bench.plan import PrecisionPlan

pytestmark = [pytest.mark.filterwarnings(entry) for entry in WARNINGS]


@pytest.mark.parametrize("name", each(TINY))
def test_a_plan_is_what_it_is_by_hand(name: str) -> None:
    """A single one, its middle step low, and a joint one, its last and first low as well: bit for
    bit, and without a trace, between calls and after `remove`.
    """
    steps, pipe = TINY[name].steps, build(name)
    reference = PrecisionPlan.uniform("fp32", steps)
    single = reference.replace(steps // 2, "w4a4")
    joint = single.replace(0, "w4a4").replace(steps - 1, "w8a8")
    plain, before = call(pipe), traces(pipe)
    expected = [by_hand(pipe, plan) for plan in (single, joint)]
    assert traces(pipe) == before
    deploy.apply(pipe, reference, levels=("w4a4", "w8a8"))
    assert torch.equal(call(pipe), plain)
    for plan, drawn in zip((single, joint), expected, strict=True):
        deploy.apply(pipe, plan)
        assert torch.equal(call(pipe), drawn)
        assert not torch.equal(drawn, plain)
    assert {**traces(pipe), "class": 0} == {**before, "class": 0}
    deploy.remove(pipe)
    assert traces(pipe) == before
    assert torch.equal(call(pipe), plain)
