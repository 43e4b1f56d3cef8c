"""A process that holds one model at some levels and times whole plans when asked.

Compiler settings, caches and thread pools are a process's own, so each setting that is timed gets
one. Requests and answers are lines on stdin and stdout: first the `Subject` as JSON, answered by
`{"title", "environment"}`, then plans as run-length text, answered by `{"seconds"}`. What the user
did wrong is answered by `{"error"}`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tmpdiff_bench.commands import run
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.plan import PrecisionPlan

RANDOM = "random"


@dataclass(frozen=True)
class Subject:
    """What is timed: a model at some levels, running `steps` steps of `batch` images.

    Weights `random` are a denoiser of true size, for square images of `resolution` pixels; others
    are a pipeline, with arguments of its `call`.
    """

    model: str
    levels: tuple[str, ...]
    weights: str = "embedded"
    revision: str | None = None
    steps: int = 20
    call: Mapping[str, Any] = field(default_factory=dict)
    batch: int = 1
    device: str = "cpu"
    resolution: int = 1024
    compiled: bool = False


def main(argv: Sequence[str]) -> None:
    """Answer requests until stdin ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    timed: Any = None
    for line in sys.stdin:
        try:
            if timed is None:
                from tmpdiff_bench.costs.subjects import runner

                subject = json.loads(line)
                timed = runner(Subject(**{**subject, "levels": tuple(subject["levels"])}))
                answer: dict[str, Any] = {
                    "title": timed.title,
                    "environment": _environment(subject["device"]),
                }
            else:
                answer = {"seconds": timed.seconds(PrecisionPlan.parse(line))}
        except UsageError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), file=answers)


def _environment(device: str) -> dict[str, Any]:
    from tmpdiff_bench.trajectory.workload import environment

    return environment(device)


if __name__ == "__main__":
    run(main)
