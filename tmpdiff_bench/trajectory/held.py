"""What is held of runs, within a number of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container
from typing import Any

Prefix = tuple[int, tuple[str, ...]]  # a batch of samples, and the levels so far


class Held:
    """Values by prefix within a number of bytes; those used last stay. `peak` is the most there
    were.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._bytes, self.peak = limit, 0, 0
        self._values: OrderedDict[Prefix, tuple[Any, int]] = OrderedDict()

    def get(self, key: Prefix) -> Any:
        """A value that is held, now the one used last; None where it isn't."""
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key][0]

    def put(self, key: Prefix, value: Any, size: int, needed: Container[Prefix] = ()) -> bool:
        """Hold a value of `size` bytes at the expense of others, but not of those `needed`; whether
        there was room.
        """
        if key in self._values:
            return True
        for other in [k for k in self._values if k not in needed]:
            if self._bytes + size <= self._limit:
                break
            self._bytes -= self._values.pop(other)[1]
        if self._bytes + size > self._limit:
            return False
        self._values[key] = value, size
        self._bytes += size
        self.peak = max(self.peak, self._bytes)
        return True
