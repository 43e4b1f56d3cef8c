"""Data: every allocator on 20 steps of the embedded sd3, measuring plans as it asks for them.

    python -m analysis.live_allocations [--samples 2] [--steps 20] [--out reports/live-allocations]

Levels, costs and prompts are those of `analysis.every_plan`. Writes one file per target speedup
(`speedup-X.json`); what is there already is not run again. A plan that one allocator has measured
is not run again for the next; accounts are of each one alone. 23,000 network evaluations a sample
and speedup at 20 steps.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from analysis.allocators import COSTS, row
from analysis.every_plan import LEVELS, engine, workload
from analysis.provenance import ROOT
from tmpdiff_bench.allocators import ALLOCATORS, Allocation, AllocationProblem
from tmpdiff_bench.commands import ArgumentParser, positive_int, run
from tmpdiff_bench.problems import live_problem
from tmpdiff_bench.store import write_atomically

SPEEDUPS = (1.5, 2.0, 2.5)


def measure(folder: Path, steps: int, samples: int) -> None:
    """Run the speedups of which no file is there, unless it is of another workload."""
    loaded, work = workload(steps, 0, samples)
    key = work.key(levels=LEVELS)
    paths = {speedup: folder / f"speedup-{speedup}.json" for speedup in SPEEDUPS}
    left = [speedup for speedup, path in paths.items() if not _is_of(path, key)]
    if not left:
        return
    with tqdm(desc=f"{steps} steps", unit="NFE") as bar:
        runs = engine(loaded, work, bar.update)
        problem = live_problem(runs, COSTS, speedup=1.0, record_singles=True)
        problem = dataclasses.replace(problem, error=functools.cache(problem.error))
        for speedup in left:
            task = dataclasses.replace(problem, budget=problem.reference_cost / speedup)
            rows = [row(found, speedup, math.nan) for found in _allocations(task, bar)]
            about = {"key": key, "samples": samples, "steps": steps, "rows": rows}
            text = json.dumps(about, indent=1, allow_nan=True)
            write_atomically(paths[speedup], f"{text}\n".encode())


def _allocations(task: AllocationProblem, bar: tqdm) -> list[Allocation]:
    found = []
    for name in ALLOCATORS:
        if name == "exhaustive":  # 3^20 plans
            continue
        bar.set_postfix_str(f"{name}, {task.reference_cost / task.budget:.2g}x")
        found.append(ALLOCATORS[name](task))
    return found


def _is_of(path: Path, key: str) -> bool:
    return path.exists() and json.loads(path.read_text())["key"] == key


def main(argv: Sequence[str]) -> None:
    """Measure what is missing."""
    parser = ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=positive_int, default=2)
    parser.add_argument("--steps", type=positive_int, default=20)
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "live-allocations")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    measure(options.out, options.steps, options.samples)
    print(f"{len(SPEEDUPS)} speedups in {options.out}")


if __name__ == "__main__":
    run(main)
