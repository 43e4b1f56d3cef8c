"""Several runs of a pipeline side by side, which stop where a module is called in their loops."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tmpdiff_bench.trajectory.replay import Request

Ask = Callable[[Request], Any]


class ClosedError(Exception):
    """Ends a strand that nobody goes on with."""


class Strand:
    """A call of `body(ask)` that stops at each `ask` until it is answered. It has a thread of its
    own, which runs only while `go_on` waits for it: never two at a time.
    """

    def __init__(self, body: Callable[[Ask], Any]) -> None:
        self._body, self._answer = body, None
        self._forward, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._closing = False
        self.asked: Request | None = None  # what it waits for; None before its start and at its end
        self.returned: Any = None
        self.failure: BaseException | None = None
        self._modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def go_on(self, answer: Any = None) -> None:
        """Run to the next `ask`, or to the end.

        Raises:
            Exception: what the call raised.
        """
        self._answer = answer
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._forward.release()
        self._back.acquire()
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        """End it wherever it stands."""
        self._closing = True
        if self._thread.ident is not None:
            self._forward.release()
            self._thread.join()

    def _ask(self, request: Request) -> Any:
        self.asked = request
        self._back.release()
        self._forward.acquire()
        if self._closing:
            raise ClosedError
        return self._answer

    def _run(self) -> None:
        grad, inference = self._modes  # which are a thread's own
        try:
            with torch.inference_mode(inference), torch.set_grad_enabled(grad):
                self.returned = self._body(self._ask)
        except BaseException as error:
            self.failure = error
        self.asked = None
        self._back.release()


def run_together(
    bodies: Sequence[Callable[[Ask], Any]], answer: Callable[[Sequence[Request]], Sequence[Any]]
) -> list[Any]:
    """What the bodies return. All that is asked at one place of the loop is answered at once.

    Raises:
        Exception: what one of them raised; the others end.
    """
    strands = [Strand(body) for body in bodies]
    try:
        for strand in strands:
            strand.go_on()
        while waiting := [(strand, strand.asked) for strand in strands if strand.asked is not None]:
            first = min(_place(asked) for _, asked in waiting)
            now = [(strand, asked) for strand, asked in waiting if _place(asked) == first]
            answers = answer([asked for _, asked in now])
            for (strand, _), found in zip(now, answers, strict=True):
                strand.go_on(found)
        return [strand.returned for strand in strands]
    finally:
        for strand in strands:
            strand.close()


def _place(request: Request) -> tuple[int, int]:
    return len(request.prefix), request.number


def twin(pipe: Any) -> Any:
    """A pipeline of the same parts, except for schedulers, so that it can run beside the other."""
    made = copy.copy(pipe)
    for name, part in vars(pipe).items():
        if callable(getattr(part, "set_timesteps", None)):
            vars(made)[name] = copy.deepcopy(part)
    return made
