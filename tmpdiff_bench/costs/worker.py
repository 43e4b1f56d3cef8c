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
from collections.abc import Sequence
from typing import Any

from tmpdiff_bench.commands import run
from tmpdiff_bench.costs.isolation import Subject
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.plan import PrecisionPlan


def main(argv: Sequence[str]) -> None:
    """Answer requests until stdin ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    timed: Any = None
    for line in sys.stdin:
        try:
            if timed is None:
                from tmpdiff_bench.costs.subjects import runner
                from tmpdiff_bench.trajectory.workload import environment

                subject = json.loads(line)
                timed = runner(Subject(**{**subject, "levels": tuple(subject["levels"])}))
                answer: dict[str, Any] = {
                    "title": timed.title,
                    "environment": environment(subject["device"]),
                }
            else:
                answer = {"seconds": timed.seconds(PrecisionPlan.parse(line))}
        except UsageError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    run(main)
