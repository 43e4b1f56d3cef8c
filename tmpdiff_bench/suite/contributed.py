"""Anybody's allocators, by name, checked before they are scored."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from tmpdiff_bench.allocators.contract import ContractError, check
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.suite.rules import OURS, Allocate


def load_allocators(names: Sequence[str]) -> dict[str, Allocate]:
    """Import `package.module:function` each, and run it through the contract check.

    Modules are also found in the working folder.

    Raises:
        UsageError: a name that is not of this form, of nothing that can be called, given twice, or
            of an allocator that breaks the contract.
    """
    found: dict[str, Allocate] = {}
    for name in names:
        if name in found or name in OURS:
            raise UsageError(f"--allocator {name} is given twice, or is one of ours")
        found[name] = _checked(name, _load(name))
    return found


def _load(name: str) -> Allocate:
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise UsageError(f"--allocator {name!r} is not of the form package.module:function")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module), attribute, None)
    except Exception as error:  # whatever a stranger's module raises: the one line names it
        reason = " ".join(str(error).split())
        raise UsageError(
            f"--allocator {name}: {module} can't be imported ({type(error).__name__}: {reason})"
        ) from error
    if not callable(function):
        raise UsageError(f"--allocator {name}: {module} has no function {attribute!r}")
    allocate: Allocate = function
    return allocate


def _checked(name: str, allocate: Allocate) -> Allocate:
    try:
        check(allocate)
    except ContractError as error:
        raise UsageError(
            f"--allocator {name} breaks the contract of allocators: {error}"
        ) from error
    return allocate
