"""How far the same cells drift at another batch size, thread count and dtype."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tmpdiff_bench.metrics import LATENT_METRICS
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.suite.bench import LEVELS, Bench, Prompts
from tmpdiff_bench.suite.tasks import Group
from tmpdiff_bench.suite.v1 import MATCHED
from tmpdiff_bench.trajectory import NonFiniteLatentsError

CONDITIONS = ("batch 1", "other threads", "bfloat16")


def drift_rows(
    bench: Bench, group: Group, prompts: Prompts, smallest: float
) -> Iterator[dict[str, Any]]:
    """Rows of the table of drift: the uniform plans of all levels, run again under each condition,
    against the same plans as the suite runs them.

    Each distance stands beside `smallest`, the least error of a single plan on the same samples:
    what does not exceed the drift is no measurement (DESIGN section 5).
    """
    plans = [PrecisionPlan.uniform(level, group.steps) for level in LEVELS]
    own = _finals(bench, prompts, plans, "own")
    for condition in conditions():
        again = _finals(bench, prompts, plans, condition)
        for plan, final, base in zip(plans, again, own, strict=True):
            distances = LATENT_METRICS[MATCHED](final, base).double().tolist()
            for (prompt, seed), distance in zip(prompts.samples, distances, strict=True):
                yield {
                    "model": group.model,
                    "prompt_set": group.prompt_set,
                    "steps": group.steps,
                    "condition": condition,
                    "plan": str(plan),
                    "prompt_id": prompt,
                    "seed": seed,
                    "latent_rmse": distance,
                    "smallest_single_error": smallest,
                    "ratio": distance / smallest,
                }


def conditions() -> tuple[str, ...]:
    """What is varied; of threads, one where there are more, else two."""
    return ("batch 1", f"threads {_other_threads()}", "bfloat16")


def drift_nfe(per_loop: int, samples: int) -> int:
    """Network evaluations of `drift_rows`: the suite's own condition, and the others."""
    return (1 + len(CONDITIONS)) * len(LEVELS) * per_loop * samples


def _finals(
    bench: Bench, prompts: Prompts, plans: Sequence[PrecisionPlan], condition: str
) -> Tensor:
    """Final latents (P, n, ...) under a condition, from the store where they are there."""
    steps, texts = len(plans[0]), [str(plan) for plan in plans]
    key = bench.key(prompts, steps, purpose="drift", plans=texts, condition=condition)
    cell = bench.store.get(key)
    if cell is None:
        with _threads(_other_threads() if condition.startswith("threads") else None):
            finals = _run(bench, prompts, plans, condition)
        cell = {"finals": finals.numpy()}
        bench.store.put(key, cell)
    return torch.from_numpy(cell["finals"])


def _run(bench: Bench, prompts: Prompts, plans: Sequence[PrecisionPlan], condition: str) -> Tensor:
    if condition == "bfloat16":
        bench = Bench(bench.model.name, bench.store, bench.on_nfe, dtype="bf16")
    batch = 1 if condition == "batch 1" else None
    found: dict[int, Tensor] = {}
    for index, run in bench.engine(prompts, len(plans[0]), max_batch=batch).each(plans):
        if isinstance(run, NonFiniteLatentsError):
            raise run
        found[index] = run.final
    return torch.stack([found[index] for index in range(len(plans))])


def _other_threads() -> int:
    return 1 if torch.get_num_threads() > 1 else 2


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
