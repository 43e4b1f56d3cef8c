"""The options of commands that record, made from the fields of `Experiment`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from tmpdiff_bench.commands import names, positive_int, seed
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.experiment import DTYPES, Experiment, option_of
from tmpdiff_bench.plan import PrecisionPlan


def levels(text: str) -> tuple[str, ...]:
    """The argument type of `--levels`."""
    if len(found := names(text)) < 2:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not the reference and at least one low level, such as fp32,w4a4"
        )
    return found


def dtype(text: str) -> str:
    """The argument type of `--dtype`: our names and torch's."""
    return {theirs: ours for ours, theirs in DTYPES.items()}.get(text, text)


def argument(text: str) -> tuple[str, Any]:
    """The argument type of `--call`: NAME=VALUE, the value as JSON, or else as text."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE, such as guidance_scale=3.5")
    try:
        return name, json.loads(value, parse_constant=_no_number)
    except ValueError:
        return name, value


def own_level(text: str) -> tuple[str, Path]:
    """The argument type of `--level`: NAME=PATH."""
    name, equals, path = text.partition("=")
    if not name or not equals or not path:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH, such as mine=FOLDER")
    return name, Path(path)


def by_name(option: str, given: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """What an option gave many times. Raises `UsageError` where a name is there twice."""
    found: dict[str, Any] = {}
    for name, value in given:
        if name in found:
            raise UsageError(f"{option} {name} is given twice")
        found[name] = value
    return found


def plan(text: str) -> PrecisionPlan:
    """The argument type of `--plan`."""
    try:
        return PrecisionPlan.parse(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


_TYPES: dict[str, Callable[[str], Any]] = {
    "levels": levels,
    "metrics": names,
    "quantized": names,
    "prompts": Path,
    "seed": seed,
    "joint_plans": seed,
    "dtype": dtype,
    "call": argument,
    "modules": own_level,
    "plans": plan,
    **dict.fromkeys(
        ("steps", "num_prompts", "num_seeds", "max_batch", "vae_tile", "state_memory"), positive_int
    ),
}
_NAMED = ("call", "modules")
_MANY = (*_NAMED, "plans")
_ALIASES = {"dtype": ["--torch-dtype"]}


def add_options(
    parser: argparse.ArgumentParser, *, without: Sequence[str] = (), **defaults: Any
) -> None:
    """Add an option for every field of `Experiment` but those `without`; `defaults` are a command's
    own. Those not given leave no attribute, so that they can be told from defaults.
    """
    group = parser.add_argument_group("experiment")
    for f in fields(Experiment):
        if f.name in without:
            continue
        group.add_argument(
            option_of(f.name),
            *_ALIASES.get(f.name, ()),
            dest=f.name,
            type=_TYPES.get(f.name, str),
            action="append" if f.name in _MANY else "store",
            default=argparse.SUPPRESS,
            metavar=f.metadata.get("metavar") or option_of(f.name).rpartition("-")[2].upper(),
            help=_help(f, defaults.get(f.name, f.default)),
        )
    parser.set_defaults(own_defaults=defaults)


def given(parsed: argparse.Namespace) -> list[str]:
    """The options of experiments that the command line names."""
    return [option_of(f.name) for f in fields(Experiment) if hasattr(parsed, f.name)]


def values(parsed: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The fields of these names, or all, as a command line has them: given, or the command's own
    defaults. Raises `UsageError` where a call argument is given twice.
    """
    found = {**parsed.own_defaults}
    for f in fields(Experiment):
        if hasattr(parsed, f.name):
            value = getattr(parsed, f.name)
            found[f.name] = value * f.metadata["unit"] if "unit" in f.metadata else value
    for name in found.keys() & {*_NAMED}:
        found[name] = by_name(option_of(name), found[name])
    return {name: found[name] for name in found if name in names or not names}


def experiment(parsed: argparse.Namespace, **more: Any) -> Experiment:
    """The experiment of a command line; `more` fields are the command's own.

    Raises:
        UsageError: as `Experiment` and `values`.
    """
    found = values(parsed)
    if "levels" not in vars(parsed) and "levels" in found:
        low = found.get("modules") or found["levels"][1:]
        found["levels"] = (found.get("dtype", "fp32"), *low)
    return Experiment(**{**found, **more})


def _help(f: Field[Any], default: Any) -> str:
    text: str = f.metadata["help"]
    if default in (None, MISSING, ()):
        return text
    if "unit" in f.metadata:
        default //= f.metadata["unit"]
    shown = ",".join(default) if isinstance(default, tuple) else default
    return f"{text} (default: {shown})"


def _no_number(text: str) -> None:
    raise argparse.ArgumentTypeError(f"{text} is no finite number")
