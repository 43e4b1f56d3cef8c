"""Levels: named precision configurations of a denoiser, as small frozen values."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tmpdiff_bench.errors import UsageError, unknown

SIMULATED, NATIVE = "simulated", "native"
# 4-bit integer weights need finer scales than whole rows (DESIGN §4)
_WEIGHT_GROUP = {"int4": 64}
_NAME = re.compile(r"(?P<native>native:)?(?P<base>[a-z0-9]+)(?:\+lr(?P<rank>[1-9][0-9]{0,5}))?")
# what rounds nothing away, or too little for a low-rank branch to give anything back
_WIDE = {None, "bf16", "fp16"}


@dataclass(frozen=True)
class Level:
    """Formats of weights and activations in the quantized layers (`None`: left as they are).

    Integer weight scales are per output channel, or per `weight_group` inputs of it; activation
    scales are per token (linear) or per image (convolution), taken from the input itself. A level
    with a `rank` keeps that many leading singular vectors of the smoothed weight in the reference's
    dtype. `backend` is "native" where the arithmetic is that of real kernels, and "simulated" where
    it is the reference's on rounded numbers; only native levels have a speed. The reference `fp32`
    emulates nothing, so it is native.

    >>> Level.parse("w4a8")
    Level(name='w4a8', weight='int4', activation='int8', weight_group=64, rank=None)
    >>> Level.parse("native:w8a8").backend, Level.parse("w4a4+lr32").rank
    ('native', 32)
    """

    name: str
    weight: str | None
    activation: str | None
    weight_group: int | None = None
    rank: int | None = None

    @classmethod
    def parse(cls, name: str) -> Level:
        """The level of a name: one of `LEVEL_NAMES`, also as `native:NAME` and `NAME+lrR`.

        Raises:
            UsageError: any other name, with the nearest that exists.
        """
        found = _NAME.fullmatch(name)
        base = found["base"] if found else ""
        if found is None or base not in _FORMATS:
            prefix = (
                f"{NATIVE}:" if name.startswith("native") else ""
            )  # the nearest is of its backend
            shown = [prefix + other for other in _FORMATS if not (prefix and other == "fp32")]
            raise unknown("level", name, [*shown, f"{prefix}w4a4+lr32"])
        weight, activation = _FORMATS[base]
        rank = int(found["rank"]) if found["rank"] else None
        if found["native"] and weight is None:
            raise UsageError(f"{name}: {base} is the reference itself; name it {base}")
        if rank and weight in _WIDE:
            raise UsageError(
                f"{name}: a low-rank branch holds what a coarse format loses, and {base} loses "
                "nothing that it could hold; use it with levels such as w4a4+lr32"
            )
        return cls(name, weight, activation, _WEIGHT_GROUP.get(weight or ""), rank)

    def __str__(self) -> str:
        return self.name

    @property
    def is_plain(self) -> bool:
        """Whether the level changes nothing."""
        return self.weight is None and self.activation is None

    @property
    def backend(self) -> str:
        """Whether real kernels run ("native") or their rounding is emulated ("simulated")."""
        return NATIVE if self.is_plain or self.name.startswith(f"{NATIVE}:") else SIMULATED

    @property
    def base(self) -> str:
        """The name without backend and low-rank branch, such as w4a4."""
        return self.name.removeprefix(f"{NATIVE}:").partition("+")[0]


# a16 is bf16: what weight-only kernels compute in
_FORMATS: dict[str, tuple[str | None, str | None]] = {
    "fp32": (None, None),
    "bf16": ("bf16", "bf16"),
    "fp16": ("fp16", "fp16"),
    "w8a16": ("int8", "bf16"),
    "w8a8": ("int8", "int8"),
    "w4a16": ("int4", "bf16"),
    "w4a8": ("int4", "int8"),
    "w4a4": ("int4", "int4"),
    "fp8": ("fp8", "fp8"),
    "mxfp8": ("mxfp8", "mxfp8"),
    "mxfp6": ("mxfp6", "mxfp6"),
    "mxfp4": ("mxfp4", "mxfp4"),
    "nvfp4": ("nvfp4", "nvfp4"),
}
LEVEL_NAMES = tuple(_FORMATS)
