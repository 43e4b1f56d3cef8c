"""The engine against one call of the pipeline per plan, and against the bare denoiser.

    python -m benchmarks.engine [--samples 4] [--repeats 3] [--out reports/benchmarks/engine.json]

On the embedded sd3 and flux, and on a tiny untrained Wan, whose denoiser takes no longer than its
pipeline; fp32 and w4a4; everything by turns in one run:

(a) all single plans at 20 steps, and all 1,024 plans at 10, by `evaluate` and by calls of the
pipeline; of 1,024 calls a share is timed, spread over them, and the rest reckoned from it;
(b) the single plans by `each`, whose batches are those of calls: its network evaluations, at the
time that one takes in the bare denoiser at the level it runs at, as a share of its time; and by
`evaluate`, the share of its time that the denoiser takes;
(c) what a replayed step takes beyond the pipeline's own arithmetic: a run that is known as a whole
against a call with a denoiser that gives its first output again;
(d) one change of level and back, reckoned for 100 layers;
(e) the most memory that steps took, and evaluations spent, under ever tighter bounds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from tests.tiny import TINY
from tmpdiff_bench.commands import ArgumentParser, positive_int, run
from tmpdiff_bench.pipelines import load_pipeline
from tmpdiff_bench.pipelines.calls import Call
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.trajectory import PrefixEngine
from tmpdiff_bench.trajectory.engine import level_banks
from tmpdiff_bench.zoo.prompts import mixed_prompts

LEVELS, TIMED_CALLS = ("fp32", "w4a4"), 16
HIGH, LOW = LEVELS
SINGLES = [PrecisionPlan.uniform(HIGH, 20)]
SINGLES += [PrecisionPlan.single(HIGH, LOW, step, 20) for step in range(20)]
EVERY = [PrecisionPlan(levels) for levels in itertools.product(LEVELS, repeat=10)]


class Setting:
    """A pipeline, its levels, and what it is called with."""

    def __init__(self, pipe: Any, shared: dict[str, Any], samples: int) -> None:
        self.pipe, self._shared = pipe, shared
        self._each = {"prompt": list(mixed_prompts(samples, "calibration")["text"])}
        self.bank = level_banks(pipe, LEVELS)["transformer"]

    def call(self, steps: int) -> Call:
        seeds = range(len(self._each["prompt"]))
        return Call({**self._shared, "num_inference_steps": steps}, self._each, seeds)

    def engine(self, steps: int, **options: Any) -> PrefixEngine:
        return PrefixEngine(self.pipe, {"transformer": self.bank}, self.call(steps), **options)

    def called(self, plan: PrecisionPlan) -> None:
        """One call of the pipeline for all samples, the level changed between steps."""
        step, forward = 0, self.pipe.transformer.forward

        def at_level(*args: Any, **kwargs: Any) -> Any:
            with self.bank.at(plan[step]):
                return forward(*args, **kwargs)

        def count(_: object, done: int, __: object, tensors: dict[str, Tensor]) -> object:
            nonlocal step
            step = done + 1
            return tensors

        with replaced_forward(self.pipe.transformer, at_level):
            self._plain(len(plan), callback_on_step_end=count)

    def around(self, steps: int) -> None:
        """One call of the pipeline, of whose denoiser each call returns the first one's output."""
        first, forward = None, self.pipe.transformer.forward

        def again(*args: Any, **kwargs: Any) -> Any:
            nonlocal first
            if first is None:
                first = forward(*args, **kwargs)
            return first

        with replaced_forward(self.pipe.transformer, again):
            self._plain(steps)

    def _plain(self, steps: int, **more: Any) -> None:
        call = self.call(steps)
        with torch.no_grad():
            self.pipe(**call.arguments(), output_type="latent", **more)

    def bare(self) -> Callable[[str], float]:
        """Given a level: seconds per network evaluation of a forward that the pipeline makes."""
        given: dict[str, Any] = {}
        forward = self.pipe.transformer.forward

        def look(**kwargs: Any) -> Any:
            given.update(kwargs)
            return forward(**kwargs)

        with replaced_forward(self.pipe.transformer, look):
            self._plain(1)

        def timed(level: str) -> float:
            with torch.no_grad(), self.bank.at(level):
                return seconds(lambda: self.pipe.transformer(**given)) / len(given["hidden_states"])

        return timed


@contextmanager
def replaced_forward(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """Inside, calls of the module go to `forward`."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward


def seconds(call: Callable[..., object], *arguments: Any) -> float:
    """Wall time of a call."""
    started = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - started


def against_calls(setting: Setting, plans: Sequence[PrecisionPlan], repeats: int) -> dict[str, Any]:
    """`evaluate` and calls on the same plans, by turns."""
    steps, ratios = len(plans[0]), []
    stride = max(1, len(plans) // TIMED_CALLS)
    timed = plans[::stride] if len(plans) > 100 else plans
    setting.called(plans[-1])  # warm-up
    setting.engine(steps).evaluate(plans[-16:])
    for _ in tqdm(range(repeats), desc=f"{len(plans)} plans", leave=False):
        calls = [seconds(setting.called, plan) for plan in timed[::2]]
        engine = setting.engine(steps)
        own = seconds(engine.evaluate, plans)
        calls += [seconds(setting.called, plan) for plan in timed[1::2]]
        ratios.append((statistics.mean(calls) * len(plans) / own, own))
    return {
        "plans": len(plans),
        "steps": steps,
        "engine, s": statistics.median(own for _, own in ratios),
        "speedup": statistics.median(ratio for ratio, _ in ratios),
        "network evaluations, ratio": engine.plain_nfe / engine.nfe,
    }


def of_limit(setting: Setting, plans: Sequence[PrecisionPlan], repeats: int) -> dict[str, float]:
    """The bare denoiser's time for the evaluations of `each`, as a share of that of `each`."""
    nodes = {plan.levels[:k] for plan in plans for k in range(1, len(plan) + 1)}
    share = {level: sum(node[-1] == level for node in nodes) / len(nodes) for level in LEVELS}
    bare, found = setting.bare(), []
    for _ in range(repeats):
        engine = setting.engine(len(plans[0]))
        alone: dict[str, list[float]] = {level: [] for level in LEVELS}
        own = 0.0
        runs = engine.each(plans)
        while True:  # the machine's speed drifts: the bare denoiser is timed between runs
            started = time.perf_counter()
            done = next(runs, None) is None
            own += time.perf_counter() - started
            for level in LEVELS:
                alone[level] += [bare(level) for _ in range(3)]
            if done:
                break
        limit = engine.nfe * sum(share[x] * statistics.median(alone[x]) for x in LEVELS)
        found.append(limit / own)
    return {"of the bare denoiser's time": statistics.median(found)}


def in_denoiser(setting: Setting, plans: Sequence[PrecisionPlan], repeats: int) -> dict[str, float]:
    """The denoiser's own time, as a share of that of `evaluate`."""
    forward, found, spent = setting.pipe.transformer.forward, [], 0.0

    def timed(*args: Any, **kwargs: Any) -> Any:
        nonlocal spent
        started = time.perf_counter()
        output = forward(*args, **kwargs)
        spent += time.perf_counter() - started
        return output

    with replaced_forward(setting.pipe.transformer, timed):
        for _ in range(repeats):
            engine, spent = setting.engine(len(plans[0])), 0.0
            own = seconds(engine.evaluate, plans)
            found.append(spent / own)
    return {"in the denoiser": statistics.median(found)}


def replayed_step(setting: Setting, steps: int, repeats: int) -> float:
    """Seconds that a replayed step takes beyond the pipeline's own."""
    engine = setting.engine(steps)
    plan = PrecisionPlan.uniform(HIGH, steps)
    dict(engine.each([plan]))
    known, around = [], []
    setting.around(1)
    for _ in range(10 * repeats):
        known.append(seconds(lambda: dict(engine.each([plan]))))
        long, short = (seconds(setting.around, n) for n in (steps, 1))
        around.append(long - short)  # without encoders and the one real forward
    one = setting.engine(1)
    start = [PrecisionPlan.uniform(HIGH, 1)]
    dict(one.each(start))
    begun = statistics.median(seconds(lambda: dict(one.each(start))) for _ in range(10 * repeats))
    own = (statistics.median(known) - begun) / (steps - 1)
    return own - statistics.median(around) / (steps - 1)


def switch(setting: Setting) -> float:
    """Seconds of a change of level and back, reckoned for 100 layers."""

    def many() -> None:
        for _ in range(1000):
            with setting.bank.at(LOW):
                pass

    many()
    each = statistics.median(seconds(many) for _ in range(5)) / 1000
    return each * 100 / len(setting.bank.quantized)


def bounded(setting: Setting, plans: Sequence[PrecisionPlan]) -> list[dict[str, Any]]:
    """Peak memory of steps and evaluations spent, under ever tighter bounds."""
    rows = []
    least = setting.engine(len(plans[0]))
    least.evaluate(plans[:1])
    for paths in (1000, 2, 1, 0.5, 0):
        bound = int(paths * least.peak_memory)
        engine = setting.engine(len(plans[0]), state_memory=bound)
        spent = seconds(engine.evaluate, plans)
        rows.append(
            {"bound, runs": paths, "peak, bytes": engine.peak_memory, "bound, bytes": bound}
            | {"network evaluations": engine.nfe, "s": spent}
        )
    return rows


def settings(samples: int) -> Iterator[tuple[str, Setting]]:
    """What is measured, one after the other."""
    for name in ("sd3", "flux"):
        loaded = load_pipeline(name)
        yield name, Setting(loaded.pipeline, loaded.defaults, samples)
    wan = TINY["WanPipeline"]
    yield "tiny Wan", Setting(wan.build(), dict(wan.call), samples)


def main(argv: Sequence[str]) -> None:
    """Run all comparisons, print them, and save them as JSON."""
    parser = ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=positive_int, default=4)
    parser.add_argument("--repeats", type=positive_int, default=3)
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/engine.json"))
    options = parser.parse_args(argv)
    report: dict[str, Any] = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "samples": options.samples,
    }
    for name, setting in settings(options.samples):
        report[name] = {
            "all single plans": against_calls(setting, SINGLES, options.repeats),
            "all plans": against_calls(setting, EVERY, 1),
            "single plans by each": of_limit(setting, SINGLES, options.repeats),
            "single plans by evaluate": in_denoiser(setting, SINGLES, options.repeats),
            "replayed step, ms": 1000 * replayed_step(setting, 20, options.repeats),
            "switch of 100 layers, us": 1e6 * switch(setting),
            "memory": bounded(setting, SINGLES),
        }
        print(f"{name}:\n{json.dumps(report[name], indent=2)}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    run(main)
