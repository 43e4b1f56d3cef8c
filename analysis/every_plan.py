"""Data: the error of every plan of a small task, so that regret can be exact.

    python -m analysis.every_plan [--samples 4] [--steps 8] [--out reports/every-plan]

The embedded sd3 with the levels fp32, w8a8 and w4a4: all plans (6,561 at 8 steps), run once through
the prefix tree on calibration prompts. Writes one file per sample (`sample-N.safetensors`:
latent RMSE of every plan in lexical order, and the inner products of the single plans' terminal
deviations); a sample that is there already is not run again. 19,680 network evaluations a
sample at 8 steps.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save
from tqdm import tqdm

from analysis.provenance import ROOT
from tmpdiff_bench.commands import ArgumentParser, positive_int, run
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.pipelines import LoadedModel, load_pipeline
from tmpdiff_bench.pipelines.calls import Call
from tmpdiff_bench.plan import PrecisionPlan, nodes_per_step
from tmpdiff_bench.problems import LiveError
from tmpdiff_bench.problems.costs import mean_products
from tmpdiff_bench.store import write_atomically
from tmpdiff_bench.trajectory import PrefixEngine, Workload
from tmpdiff_bench.trajectory.engine import level_banks
from tmpdiff_bench.trajectory.workload import plain, sampler
from tmpdiff_bench.zoo.prompts import mixed_prompts

LEVELS = ("fp32", "w8a8", "w4a4")


@dataclass(frozen=True, eq=False)
class EveryPlan:
    """`errors` (n, P) of all P plans in lexical order; `products` (n, K, K), cells by level."""

    steps: int
    errors: NDArray[np.float32]
    products: NDArray[np.float64]


def all_plans(steps: int) -> list[PrecisionPlan]:
    """Every plan, in lexical order of level indices."""
    return [PrecisionPlan(levels) for levels in itertools.product(LEVELS, repeat=steps)]


def workload(steps: int, first: int, samples: int) -> tuple[LoadedModel, Workload]:
    """The model, and `samples` calibration prompts from number `first` on, one seed each."""
    loaded = load_pipeline("sd3")
    prompts = mixed_prompts(first + samples, "calibration").iloc[first:]
    return loaded, Workload(
        model=loaded.name,
        weights=loaded.weights,
        weights_digest=loaded.digest,
        sampler=sampler(loaded.pipeline.scheduler),
        steps=steps,
        prompts=dict(zip(prompts["prompt_id"], prompts["text"], strict=True)),
        seeds=(0,),
        dtype="float32",
        max_batch=32,
        arguments=plain(loaded.defaults),
    )


def engine(loaded: LoadedModel, work: Workload, on_nfe: Callable[[int], None]) -> PrefixEngine:
    """What runs plans of a workload."""
    call = Call(
        {**loaded.defaults, "num_inference_steps": work.steps},
        {"prompt": list(work.prompts.values())},
        work.generator_seeds,
    )
    banks = level_banks(loaded.pipeline, LEVELS)
    return PrefixEngine(loaded.pipeline, banks, call, max_batch=work.max_batch, on_nfe=on_nfe)


def measure(path: Path, steps: int, index: int) -> None:
    """Run all plans on one sample, unless the file is of the same workload already."""
    loaded, work = workload(steps, index, 1)
    key = work.key(levels=LEVELS)
    if path.exists():
        with safe_open(path, "np") as file:
            if json.loads(file.metadata()["about"])["key"] == key:
                return
    plans = all_plans(steps)
    with tqdm(desc=f"sample {index}", unit="NFE") as bar:
        error = LiveError(engine(loaded, work, bar.update))
        each = zip(nodes_per_step(plans), error.engine.nfe_per_step, strict=True)
        bar.total = sum(nodes * nfe for nodes, nfe in each)
        errors = error.samples(plans)[:, 0]
    singles = PrecisionPlan.singles(LEVELS, steps)
    deviations = error.deviations(singles).flatten(1).numpy()
    about = {
        "key": key,
        "weights": work.weights_digest,
        "levels": LEVELS,
        "steps": steps,
        "prompts": work.prompts,
        "nfe": error.engine.nfe,
    }
    arrays: dict[str, NDArray[Any]] = {
        "errors": errors.astype(np.float32),
        "products": mean_products(deviations),
    }
    write_atomically(path, save(arrays, {"about": json.dumps(about, ensure_ascii=False)}))


def load_every_plan(folder: Path) -> EveryPlan:
    """What has been measured so far, sample by sample."""
    errors, products, steps = [], [], set()
    for path in sorted(folder.glob("sample-*.safetensors")):
        with safe_open(path, "np") as file:
            errors.append(file.get_tensor("errors"))
            products.append(file.get_tensor("products"))
            steps.add(json.loads(file.metadata()["about"])["steps"])
    if len(steps) != 1:
        raise UsageError(f"{folder} holds samples of {sorted(steps)} steps: make them anew")
    return EveryPlan(steps.pop(), np.array(errors), np.array(products))


def main(argv: Sequence[str]) -> None:
    """Measure what is missing."""
    parser = ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=positive_int, default=4)
    parser.add_argument("--steps", type=positive_int, default=8)
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "every-plan")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    for index in range(options.samples):
        measure(options.out / f"sample-{index}.safetensors", options.steps, index)
    print(f"{options.samples} samples in {options.out}")


if __name__ == "__main__":
    run(main)
