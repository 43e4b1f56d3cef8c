"""Cost tables: what one denoising step costs at each level, measured or by a roofline.

numpy only, so that plans can be allocated on a machine that holds no model.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tmpdiff_bench.errors import UsageError, check_known, unknown
from tmpdiff_bench.files import data_folder, parse_json, read_text
from tmpdiff_bench.levels.level import Level
from tmpdiff_bench.plan import PrecisionPlan

Kind = Literal["measured", "roofline"]
NATIVE = "native:"
# The embedded models run in float32: `fp32` is what they are measured against. In deployment the
# reference is bf16, and it is what the true-size model's reference step costs.
COSTED_AS = {"fp32": "bf16"}
_SCHEMA_VERSION = 1
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


@dataclass(frozen=True)
class Cost:
    """A time in ms; `interval` holds its median in 95 % of repetitions, where it was measured."""

    ms: float
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        low, high = self.interval or (self.ms, self.ms)
        if not all(is_number(v) for v in (self.ms, low, high)) or not low <= self.ms <= high:
            raise UsageError(f"{self.ms!r} ms with interval {self.interval!r} is no cost")


@dataclass(frozen=True)
class CostTable:
    """What one step of a model (all its network calls, for one image) costs at each level.

    `name` is also the file's stem. `levels` maps names to costs, the reference first. `switch` is
    what it costs to go from one level to another between two steps. `compute_bound` is, per level
    of a roofline, the share of the time that arithmetic bounds; memory bounds the rest. `refused`
    gives the reason for each level that the device lacks. `setting` says of what and how:
    resolution, rows of a network call, steps.

    Raises:
        UsageError: a simulated level in a measured table, or anything else that can't be true.
    """

    name: str
    kind: Kind
    model: str
    device: str
    levels: Mapping[str, Cost]
    switch: Cost = field(default_factory=lambda: Cost(0.0))
    compute_bound: Mapping[str, float] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    setting: Mapping[str, str | int | float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    unit = "ms"

    def __post_init__(self) -> None:
        check_known("kind of cost table", str(self.kind), get_args(Kind))
        if not self.levels:
            raise UsageError(f"cost table {self.name} has no levels")
        for level, cost in self.levels.items():
            if cost.ms <= 0:
                raise UsageError(f"a step at {level} can't cost {cost.ms:g} ms")
            if self.kind == "measured" and not is_native(level):
                raise UsageError(
                    f"{level} is simulated: its time says nothing about {level} on real kernels, "
                    f"and has no place in a measured table; measure {NATIVE}{level}"
                )
            if self.kind == "roofline" and level.startswith(NATIVE):
                raise UsageError(f"{level} can be measured, a roofline knows {_bare(level)}")
        if not isinstance(self.name, str) or _NAME.fullmatch(self.name) is None:
            raise UsageError(
                f"bad name {self.name!r} of a cost table: lower-case letters, digits, '.', '_', '-'"
            )

    @property
    def reference(self) -> str:
        """The level that speedups are against: the first."""
        return next(iter(self.levels))

    @property
    def title(self) -> str:
        """Such as "FLUX.1-dev at 1024x1024 on H200 SXM (roofline)"."""
        return f"{self.model} on {self.device} ({self.kind})"

    def cost(self, plan: PrecisionPlan) -> float:
        """Time of a whole plan, ms: its steps, and its switches where these cost anything."""
        switching = plan.switches * max(0.0, self.switch.ms)
        return float(sum(self._ms(level) for level in plan) + switching)

    def speedup(self, plan: PrecisionPlan) -> float:
        """Cost of the reference in as many steps, over the cost of `plan`."""
        return len(plan) * self._ms(self.reference) / self.cost(plan)

    def step_costs(self, levels: Sequence[str], steps: int) -> NDArray[np.float64]:
        """Time of every step, ms, at every one of `levels`, shape (steps, len(levels)).

        All steps cost the same: a network's time does not depend on the timestep.

        Raises:
            UsageError: a level that the table or the device lacks, with the reason.
        """
        if steps < 1:
            raise UsageError(f"{steps} steps: at least 1 is needed")
        return np.tile([self._ms(level) for level in levels], (steps, 1))

    def _ms(self, level: str) -> float:
        if level in self.levels:
            return self.levels[level].ms
        if level in self.refused:
            raise UsageError(f"{level} does not run on {self.device}: {self.refused[level]}")
        if self.kind == "measured" and f"{NATIVE}{level}" in self.levels:
            raise UsageError(
                f"{level} is simulated, {self.name} holds measured times: name {NATIVE}{level}"
            )
        if self.kind == "roofline" and _bare(level) in self.levels:
            raise UsageError(f"{self.name} is a roofline: it knows {_bare(level)}, not {level}")
        raise unknown(f"level of cost table {self.name}", level, self.levels)

    def to_json(self) -> str:
        """JSON text, the same for the same table."""
        fields = asdict(self)
        head = {name: fields.pop(name) for name in ("name", "kind", "model", "device")}
        content = {"schema_version": _SCHEMA_VERSION, **head, "unit": self.unit, **fields}
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> CostTable:
        """Read what `to_json` wrote. Raises `UsageError` for anything else."""
        content = parse_json(text, "a cost table's JSON")
        if not isinstance(content, dict) or set(content) != _FIELDS:
            found = sorted(content) if isinstance(content, dict) else type(content).__name__
            raise UsageError(f"a cost table's JSON has the fields {sorted(_FIELDS)}, not {found}")
        version, unit = content.pop("schema_version"), content.pop("unit")
        if type(version) is not int or version != _SCHEMA_VERSION:
            raise UsageError(f"cost table schema version {version!r} is not {_SCHEMA_VERSION}")
        if unit != cls.unit:
            raise UsageError(f"costs are in {cls.unit}, not in {unit!r}")
        for name in ("name", "kind", "model", "device"):
            if not isinstance(content[name], str):
                raise UsageError(f"a cost table's {name!r} is text, not {content[name]!r}")
        for name, kinds in _MAPPINGS.items():
            value = content[name]
            if not isinstance(value, dict) or not all(_is_a(v, kinds) for v in value.values()):
                raise UsageError(f"a cost table's {name!r} can't be {value!r}")
        content["levels"] = {level: _cost(cost) for level, cost in content["levels"].items()}
        content["switch"] = _cost(content["switch"])
        return cls(**content)

    def save(self, folder: Path) -> Path:
        """Write `folder/NAME.json`, whole or not at all; returns the file's path."""
        from tmpdiff_bench.store import write_atomically

        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        write_atomically(path, self.to_json().encode())
        return path


def is_native(level: str) -> bool:
    """Whether a level's arithmetic is that of real kernels, so that its time means something: as a
    level of the user's own does, of whatever name.
    """
    try:
        return Level.parse(level).backend == "native"
    except UsageError:
        return True


def shipped() -> tuple[str, ...]:
    """Names of the cost tables that come with the library."""
    return tuple(sorted(path.stem for path in (data_folder() / "costs").glob("*.json")))


def load_costs(name: str | Path) -> CostTable:
    """A table by its name, or by the path of its file.

    Raises:
        UsageError: there is no such table, or it can't be read.
    """
    path = Path(name)
    if path.suffix != ".json":
        check_known("cost table", str(name), shipped())
        path = data_folder() / "costs" / f"{name}.json"
    text = read_text(path, "cost table")
    try:
        return CostTable.from_json(text)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


_MAPPINGS: dict[str, tuple[type, ...]] = {
    "levels": (dict,),
    "compute_bound": (int, float),
    "refused": (str,),
    "setting": (str, int, float),
    "versions": (str,),
}
_FIELDS = {"schema_version", "name", "kind", "model", "device", "unit", "switch", *_MAPPINGS}


def _cost(content: Any) -> Cost:
    if not isinstance(content, dict) or set(content) != {"ms", "interval"}:
        raise UsageError(f"a cost is an object of 'ms' and 'interval', not {content!r}")
    interval = content["interval"]
    if interval is not None:
        if not isinstance(interval, list) or len(interval) != 2:
            raise UsageError(f"an interval is two numbers, not {interval!r}")
        interval = (interval[0], interval[1])
    return Cost(content["ms"], interval)


def is_number(value: object) -> bool:
    """Whether a value of a file is a finite number."""
    try:
        return _is_a(value, (int, float)) and math.isfinite(value)  # type: ignore[arg-type]
    except OverflowError:  # an integer beyond all floats
        return False


def _is_a(value: object, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def _bare(level: str) -> str:
    return level.removeprefix(NATIVE)
