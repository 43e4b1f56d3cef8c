"""Levels: named precision configurations of a denoiser, as small frozen values."""

from __future__ import annotations

from dataclasses import dataclass

from tmpdiff_bench.errors import unknown

# 4-bit weights need finer scales than whole rows (DESIGN §4)
_WEIGHT_GROUP = {"int4": 64}


@dataclass(frozen=True)
class Level:
    """Formats of weights and activations in the quantized layers (`None`: left as they are).

    Weight scales are per output channel, or per `weight_group` inputs of it; activation scales are
    per token (linear) or per image (convolution), taken from the input itself.

    >>> Level.parse("w4a8")
    Level(name='w4a8', weight='int4', activation='int8', weight_group=64)
    """

    name: str
    weight: str | None
    activation: str | None
    weight_group: int | None = None

    @classmethod
    def parse(cls, name: str) -> Level:
        """The level of a name. Raises `UsageError` naming the nearest one for any other name."""
        if name not in _LEVELS:
            raise unknown("level", name, _LEVELS)
        weight, activation = _LEVELS[name]
        return cls(name, weight, activation, _WEIGHT_GROUP.get(weight or ""))

    def __str__(self) -> str:
        return self.name

    @property
    def is_plain(self) -> bool:
        """Whether the level changes nothing."""
        return self.weight is None and self.activation is None


_LEVELS: dict[str, tuple[str | None, str | None]] = {
    "fp32": (None, None),
    "bf16": ("bf16", "bf16"),
    "w8a8": ("int8", "int8"),
    "w4a8": ("int4", "int8"),
    "w4a4": ("int4", "int4"),
}
LEVEL_NAMES = tuple(_LEVELS)
