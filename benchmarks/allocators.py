"""Time of each allocator itself, measurements excluded, and the import's.

    python -m benchmarks.allocators [--steps 50] [--out reports/benchmarks/allocators.json]

A generated problem of 50 steps and three levels whose deviations superpose (1,024 dimensions, half
of every deviation shared, so that products are large and positive), at 60 % of the reference's
cost, with the single errors and the Gram matrix given. `exhaustive` runs on the first 8 steps. Each
allocator runs once to warm up and twice to be timed; `gap` is what `gram` left open.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmpdiff_bench.allocators import ALLOCATORS, AllocationProblem, gram, gram_front
from tmpdiff_bench.commands import ArgumentParser, positive_int, run
from tmpdiff_bench.plan import PrecisionPlan

LEVELS, COSTS = ("fp32", "w8a8", "w4a4"), (1.0, 0.5, 0.25)
REPEATS, IMPORTS = 2, 5


def deviations(steps: int, *, dimensions: int, shared: float) -> NDArray[np.float64]:
    """Deviations (K, D), larger at early steps and low levels; `shared` of each is one vector."""
    rng = np.random.default_rng(0)
    size = np.r_[0.3 * np.linspace(1.5, 0.5, steps), np.linspace(1.5, 0.5, steps)]
    vectors = rng.normal(size=(2 * steps, dimensions))
    vectors = np.sqrt(1 - shared) * vectors + np.sqrt(shared) * rng.normal(size=dimensions)
    size *= rng.lognormal(0, 0.4, 2 * steps)
    return np.asarray(vectors * size[:, None] / np.sqrt(dimensions))


def problem(steps: int, *, dimensions: int = 1024, shared: float = 0.5) -> AllocationProblem:
    """The problem of such deviations."""
    vectors = deviations(steps, dimensions=dimensions, shared=shared)
    products = vectors @ vectors.T
    singles = np.zeros((steps, 3))
    singles[:, 1:] = np.sqrt(np.diag(products)).reshape(2, steps).T

    def error(plan: PrecisionPlan) -> float:
        cells = [(LEVELS.index(v) - 1) * steps + s for s, v in enumerate(plan) if v != "fp32"]
        return float(np.sqrt(max(products[np.ix_(cells, cells)].sum(), 0.0)))

    return AllocationProblem(
        LEVELS, np.tile(COSTS, (steps, 1)), 0.6 * steps, error, singles, products
    )


def own_seconds(steps: int) -> list[dict[str, Any]]:
    """One row per allocator."""
    rows = []
    for name, allocate in ALLOCATORS.items():
        task = problem(8 if name == "exhaustive" else steps)
        allocate(task)
        found = [allocate(task) for _ in range(REPEATS)]
        seconds = statistics.median(f.seconds - f.oracle_seconds for f in found)
        rows.append(
            {
                "allocator": name,
                "steps": task.steps,
                "own, s": seconds,
                "evaluations": found[0].evaluations,
                "gap": found[0].gap,
                "error": found[0].error,
            }
        )
        print(rows[-1], flush=True)
    return rows


def hard_cases(steps: int) -> list[dict[str, Any]]:
    """What `gram` does when deviations are near to dependent, and so cancel: gaps stay open."""
    rows = []
    for dimensions, shared in ((1024, 0.0), (1024, 0.5), (60, 0.0), (20, 0.0)):
        found = gram(problem(steps, dimensions=dimensions, shared=shared))
        row = {"dimensions": dimensions, "shared": shared, "s": found.seconds, "gap": found.gap}
        rows.append(row)
        print(row, flush=True)
    return rows


def import_seconds(module: str) -> float:
    """Median seconds of importing a module in a fresh interpreter."""
    program = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter()-t)"
    command = [sys.executable, "-c", program]
    runs = [subprocess.run(command, capture_output=True, check=True) for _ in range(IMPORTS)]
    return statistics.median(float(done.stdout) for done in runs)


def main(argv: Sequence[str]) -> None:
    """Run all, print, and save as JSON."""
    parser = ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=positive_int, default=50)
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/allocators.json"))
    options = parser.parse_args(argv)
    imports = {name: import_seconds(name) for name in ("tmpdiff_bench.allocators", "numpy")}
    started = time.perf_counter()
    gram_front(problem(20))
    front = time.perf_counter() - started
    report = {
        "machine": f"{platform.machine()}, numpy {np.__version__}",
        "import, s": imports,
        "gram_front, 20 steps, s": front,
        "allocators": own_seconds(options.steps),
        "gram on hard forms": hard_cases(options.steps),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    run(main)
