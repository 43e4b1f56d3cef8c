"""The prefix-tree engine against one pipeline call per plan, and against the limit.

    python benchmarks/engine.py [--samples 4] [--out reports/benchmarks/engine.json]

All on the embedded sd3, in one run: (a) all single plans of fp32 and w4a4 at 20 steps, and all
1,024 plans at 10, by `StableDiffusion3Pipeline.__call__` and by the engine from the same latents;
(b) the engine's time against its network evaluations at the time per evaluation that the bare
denoiser takes at its best batch size just before and after, at the level that each evaluation
runs at and at the fastest of the levels, and the share of its time within the denoiser; (c) what a
batched step costs in Python, with a denoiser that does nothing; (d) the most memory that states
took, against the bound. Of the 1,024 calls a share is timed, and the rest reckoned from it. What
levels cost is in `benchmarks/levels.py`.
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
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from tmpdiff_bench.commands import run
from tmpdiff_bench.levels import LevelBank
from tmpdiff_bench.noise import initial_noise
from tmpdiff_bench.pipelines import StepwisePipeline, load_model
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.trajectory import PrefixEngine
from tmpdiff_bench.zoo.prompts import mixed_prompts

GUIDANCE, LEVELS, TIMED_CALLS = 4.0, ("fp32", "w4a4"), 24


class Setting:
    """The embedded sd3 with prompts and noise, for a number of steps."""

    def __init__(self, steps: int, samples: int) -> None:
        loaded = load_model("sd3")
        self.pipe = loaded.pipeline
        self.stepwise: StepwisePipeline = loaded.stepwise(steps=steps, guidance=GUIDANCE)
        self.bank = LevelBank(self.stepwise.denoiser, LEVELS, self.stepwise.quantized)
        self.texts = list(mixed_prompts(samples, "calibration")["text"])
        keys = [(text, 0) for text in self.texts]
        self.noise = initial_noise(keys, self.stepwise.latent_shape)
        self.conditioning = self.stepwise.encode(self.texts)

    def engine(self, **options: Any) -> PrefixEngine:
        return PrefixEngine(self.stepwise, self.bank, self.conditioning, self.noise, **options)

    def call(self, plan: PrecisionPlan, row: int | None = None) -> Tensor:
        """One pipeline call for all samples or one, its transformer exchanged between steps."""
        rows = slice(None) if row is None else slice(row, row + 1)

        def exchange(pipe: Any, step: int, _: object, tensors: dict[str, object]) -> object:
            pipe.transformer = self.bank[plan[min(step + 1, len(plan) - 1)]]
            return tensors

        self.pipe.transformer = self.bank[plan[0]]
        try:
            latents: Tensor = self.pipe(
                self.texts[rows],
                latents=self.noise[rows].clone(),
                num_inference_steps=len(plan),
                guidance_scale=GUIDANCE,
                max_sequence_length=24,
                output_type="latent",
                callback_on_step_end=exchange,
            ).images
        finally:
            self.pipe.transformer = self.stepwise.denoiser
        return latents


def seconds(call: Callable[[], object]) -> float:
    """Wall time of a call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def best_per_nfe(setting: Setting) -> dict[str, float]:
    """Seconds per network evaluation of the bare denoiser, by level.

    The median of nine forwards at the batch size where that is least: the engine's time is a sum of
    hundreds, so the luckiest single forward would be no limit.
    """
    best = {}
    network = setting.conditioning.for_network()
    for level in LEVELS:
        found = []
        for rows in (16, 32, 64, 128):
            inputs = {k: v[torch.arange(rows) % len(v)] for k, v in network.items()}
            noise = setting.noise[torch.arange(rows) % len(setting.noise)]
            timestep = torch.full((rows,), 500.0)

            def forward(
                denoiser: nn.Module = setting.bank[level],
                noise: Tensor = noise,
                timestep: Tensor = timestep,
                inputs: dict[str, Tensor] = inputs,
            ) -> None:
                with torch.no_grad():
                    denoiser(hidden_states=noise, timestep=timestep, return_dict=False, **inputs)

            forward()
            found.append(statistics.median(seconds(forward) for _ in range(9)) / rows)
        best[level] = min(found)
    return best


@contextmanager
def within_denoiser(setting: Setting) -> Iterator[list[float]]:
    """Collects the seconds of every forward of the denoiser."""
    spent: list[float] = []

    def timed(forward: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            started = time.perf_counter()
            found = forward(*args, **options)
            spent.append(time.perf_counter() - started)
            return found

        return call

    modules = [setting.bank[level] for level in LEVELS]
    for module in modules:
        module.forward = timed(module.forward)
    try:
        yield spent
    finally:
        for module in modules:
            del module.forward


def evaluations(plans: Sequence[PrecisionPlan]) -> dict[str, float]:
    """Share of the prefix tree's nodes at each level."""
    nodes = {plan.levels[:k] for plan in plans for k in range(1, len(plan) + 1)}
    return {level: sum(node[-1] == level for node in nodes) / len(nodes) for level in LEVELS}


def compare(setting: Setting, plans: Sequence[PrecisionPlan]) -> dict[str, Any]:
    """Time calls and engine on the same plans; calls are spread evenly over them."""
    stride = max(1, len(plans) // TIMED_CALLS)
    called = list(range(0, len(plans), stride)) if len(plans) > 100 else list(range(len(plans)))
    setting.call(plans[-1])  # warm-up
    results, times = [], []
    for i in tqdm(called, desc="pipeline calls", leave=False):
        started = time.perf_counter()
        results.append(setting.call(plans[i]))
        times.append(time.perf_counter() - started)
    looped = statistics.mean(times) * len(plans)
    setting.engine().evaluate(plans[-16:])  # warm-up
    share, best = evaluations(plans), [best_per_nfe(setting)]
    treed, within, of_limit, of_fastest = [], [], [], []
    for _ in range(1 if len(plans) > 100 else 3):
        engine = setting.engine()
        with within_denoiser(setting) as spent:
            started = time.perf_counter()
            finals = engine.evaluate(plans)
            treed.append(time.perf_counter() - started)
        within.append(sum(spent) / treed[-1])
        # the machine's speed drifts: the bare denoiser is timed before and after
        best.append(best_per_nfe(setting))
        level_time = {level: (best[-1][level] + best[-2][level]) / 2 for level in LEVELS}
        limit = engine.nfe * sum(level_time[level] * share[level] for level in LEVELS)
        of_limit.append(limit / treed[-1])
        of_fastest.append(engine.nfe * min(level_time.values()) / treed[-1])
    reference = torch.stack(results)
    difference = (finals[called] - reference).abs().amax(dim=(1, 2, 3, 4)) / reference.abs().max()
    # what another batch size does to the calls themselves: rounding of activations is chaotic
    alone = []
    for i in called[:: max(1, len(called) // 5)]:
        rows = [setting.call(plans[i], row) for row in range(len(setting.noise))]
        k = called.index(i)
        change = (torch.cat(rows) - reference[k]).abs().max() / reference.abs().max()
        alone.append((float(change), float(difference[k])))
    plain = torch.tensor([set(plans[i]) == {"fp32"} for i in called])
    return {
        "plans": len(plans),
        "steps": len(plans[0]),
        "samples": len(setting.noise),
        "calls timed": len(called),
        "one call per plan, s": looped,
        "engine, s": statistics.median(treed),
        "speedup": looped / statistics.median(treed),
        "network evaluations, ratio": engine.plain_nfe / engine.nfe,
        "difference, fp32": float(difference[plain].max()),
        "difference, median of plans": float(difference.median()),
        "of some plans": float(statistics.median(mine for _, mine in alone)),
        "of these, calls at batch 1": float(statistics.median(other for other, _ in alone)),
        "of the limit": statistics.median(of_limit),
        "of the limit at the fastest level": statistics.median(of_fastest),
        "of the engine's time, within the denoiser": statistics.median(within),
    }


class Nothing(nn.Module):
    """A denoiser that costs nothing."""

    def forward(self, hidden_states: Tensor, **_: object) -> tuple[Tensor]:
        return (hidden_states,)


def overhead(setting: Setting, plans: Sequence[PrecisionPlan]) -> float:
    """Seconds per batched step around a denoiser that does nothing."""
    batches = 0

    def count(_: int) -> None:
        nonlocal batches
        batches += 1

    bank = LevelBank(Nothing(), ("fp32",), ())
    bank._modules["w4a4"] = bank["fp32"]
    engine = PrefixEngine(setting.stepwise, bank, setting.conditioning, setting.noise, on_nfe=count)
    return seconds(lambda: engine.evaluate(plans)) / batches


def bounded(setting: Setting, plans: Sequence[PrecisionPlan]) -> list[dict[str, Any]]:
    """Peak memory of states and evaluations spent, under ever tighter bounds."""
    rows = []
    for states in (10_000, 200, 50, 25):
        bound = states * setting.noise.nbytes
        engine = setting.engine(state_memory=bound)
        spent = seconds(partial(engine.evaluate, plans))
        rows.append(
            {"bound, states": states, "peak, bytes": engine.peak_memory, "bound, bytes": bound}
            | {"network evaluations": engine.nfe, "s": spent}
        )
    return rows


def main(argv: Sequence[str]) -> None:
    """Run all comparisons, print them, and save them as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/engine.json"))
    options = parser.parse_args(argv)
    high, low = LEVELS
    twenty, ten = Setting(20, options.samples), Setting(10, options.samples)
    singles = [PrecisionPlan.uniform(high, 20)]
    singles += [PrecisionPlan.single(high, low, step, 20) for step in range(20)]
    every = [PrecisionPlan(levels) for levels in itertools.product(LEVELS, repeat=10)]
    report = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "all single plans": compare(twenty, singles),
        "all plans": compare(ten, every),
        "overhead per batched step, ms": 1000 * overhead(twenty, singles),
        "memory": bounded(twenty, singles),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for name, value in report.items():
        for row in value if isinstance(value, list) else [value]:
            text = row
            if isinstance(row, dict):
                text = "; ".join(
                    f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v:,}" for k, v in row.items()
                )
            print(f"{name}: {text}")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    run(main)
