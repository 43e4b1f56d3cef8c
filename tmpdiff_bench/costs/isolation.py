"""Worker processes, and intervals of what they measure."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from tmpdiff_bench.costs.table import Cost
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.plan import PrecisionPlan

MIN_REPEATS = 6  # with fewer, no pair of order statistics holds the median in 95 % of repetitions


RANDOM = "random"


@dataclass(frozen=True)
class Subject:
    """What is timed: a model at some levels, running `steps` steps of `batch` images.

    Weights `random` are a denoiser of true size, for square images of `resolution` pixels; others
    are a pipeline, with arguments of its `call`. `modules` are paths of levels of one's own.
    """

    model: str
    levels: tuple[str, ...]
    weights: str = "embedded"
    revision: str | None = None
    steps: int = 20
    call: Mapping[str, Any] = field(default_factory=dict)
    modules: Mapping[str, str] = field(default_factory=dict)
    batch: int = 1
    device: str = "cpu"
    resolution: int = 1024
    compiled: bool = False


class Worker:
    """A process of its own that holds a subject, until `close`.

    It loads while others do: `wait` returns when it has.

    Raises (in `wait` and `seconds`):
        UsageError: the subject can't be loaded, with the reason.
        RuntimeError: the process died; the message ends with what it last wrote.
    """

    def __init__(self, subject: Subject) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tmpdiff_bench.costs.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self._send(json.dumps(asdict(subject)))

    def wait(self) -> dict[str, Any]:
        """The model's `title` and the `environment`, once it is loaded; to be called once."""
        return self._answer()

    def seconds(self, plan: PrecisionPlan) -> float:
        """Wall time of a plan in that process."""
        self._send(str(plan))
        return float(self._answer()["seconds"])

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()
        self._log.close()

    def _send(self, request: str) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # of a process that died: its answer is missing, too
            print(request, file=self._process.stdin, flush=True)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            lines = self._log.read().strip().splitlines()
            raise RuntimeError(f"a timing process died: {lines[-1] if lines else 'no message'}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise UsageError(answer["error"])
        return answer


def median_cost(times: Sequence[float]) -> Cost:
    """The median, with the order statistics that hold it in at least 95 % of repetitions.

    Distribution-free: the number of times below the true median is binomial (David and Nagaraja
    2003, "Order Statistics", §7.1). Fewer than `MIN_REPEATS` times are a `UsageError`.
    """
    if len(times) < MIN_REPEATS:
        raise UsageError(f"{len(times)} repeats are no interval: at least {MIN_REPEATS} are needed")
    ordered, n = sorted(times), len(times)
    below, rank = 0.0, 0
    while (below := below + math.comb(n, rank) / 2**n) <= 0.025:
        rank += 1
    return Cost(statistics.median(ordered), (ordered[rank - 1], ordered[n - rank]))
