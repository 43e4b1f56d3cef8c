"""What levels cost on this machine: forwards against the reference, memory against switch time.

    python -m benchmarks.levels [--samples 32] [--rounds 7] [--out reports/benchmarks/levels.json]

All on the embedded sd3, in one run, in turn: (a) a step of all samples at each level over one at
the reference, medians over rounds; simulated levels have no speed of their own, only a price;
(b) for each residency, what the bank holds, and how long a switch to another level and back takes.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tmpdiff_bench.commands import ArgumentParser, positive_int, run
from tmpdiff_bench.levels import LEVEL_NAMES, RESIDENCIES, Device, Level, LevelBank, reason_against
from tmpdiff_bench.pipelines import load_pipeline, quantized_layers
from tmpdiff_bench.pipelines.calls import Call
from tmpdiff_bench.zoo.prompts import mixed_prompts

STEPS = 20
SWITCHED = ("fp32", "w4a4", "nvfp4", "w4a4+lr32")


def seconds(call: Callable[[], object]) -> float:
    """Wall time of a call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def switch(bank: LevelBank, level: str) -> None:
    """To a level and back."""
    with bank.at(level):
        pass


def inputs_of_step(pipe: Any, call: Call, step: int) -> tuple[Any, Any]:
    """What the denoiser is called with at a step of all samples, once a step."""
    seen: list[tuple[Any, Any]] = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
    )
    try:
        pipe(**call.arguments())
    finally:
        hook.remove()
    return seen[step]


def running_levels() -> list[str]:
    """All simulated levels, one with a low-rank branch, and the native ones that run here."""
    here = Device.of(torch.device("cpu"))
    native = [f"native:{name}" for name in LEVEL_NAMES[1:]]
    runs = [name for name in native if reason_against(Level.parse(name), here) is None]
    return [*LEVEL_NAMES, "w4a4+lr32", *runs]


@torch.no_grad()
def measure(samples: int, rounds: int) -> dict[str, Any]:
    """Both comparisons."""
    loaded = load_pipeline("sd3")
    denoiser = loaded.pipeline.transformer
    texts = list(mixed_prompts(samples, "calibration")["text"])
    arguments = {**loaded.defaults, "num_inference_steps": STEPS, "output_type": "latent"}
    call = Call(arguments, {"prompt": texts}, range(samples))
    args, kwargs = inputs_of_step(loaded.pipeline, call, STEPS // 4)
    calibrate = partial(denoiser, *args, **kwargs)
    levels, layers = running_levels(), quantized_layers(denoiser)
    bank = LevelBank(denoiser, levels, layers, calibrate)

    def forward(level: str) -> float:
        with bank.at(level):
            return seconds(calibrate)

    for level in levels:
        forward(level)
    times = [{level: forward(level) for level in levels} for _ in range(rounds)]
    reference = levels[0]
    ratios = {
        level: statistics.median(row[level] / row[reference] for row in times) for level in levels
    }
    residencies = {}
    for mode in RESIDENCIES:
        switching = LevelBank(denoiser, SWITCHED, layers, calibrate, mode)
        told = LevelBank.memory(denoiser, SWITCHED, layers, mode)
        found: dict[str, list[float]] = {level: [] for level in SWITCHED[1:]}
        for _ in range(rounds):
            for level, took in found.items():
                took.append(1000 * seconds(partial(switch, switching, level)))
        medians = {level: statistics.median(took) for level, took in found.items()}
        residencies[mode] = {"memory, MB": told.total / 1e6, "switch, ms": medians}
    return {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "samples": samples,
        "layers": len(layers),
        "reference step, s": statistics.median(row[reference] for row in times),
        "forward of a level / of the reference": ratios,
        "residencies": residencies,
    }


def main(argv: Sequence[str]) -> None:
    """Measure, print, and save as JSON."""
    parser = ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=positive_int, default=32)
    parser.add_argument("--rounds", type=positive_int, default=7)
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/levels.json"))
    options = parser.parse_args(argv)
    report = measure(options.samples, options.rounds)
    text = json.dumps(report, indent=2)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    run(main)
