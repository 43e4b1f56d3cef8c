"""What a metric is, and what its value says about itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tmpdiff_bench.zoo.captions import Requirement

Features = Callable[[Tensor], NDArray[np.float64]]


class NotAvailableError(Exception):
    """A metric has no value here; the message says why: a weight file is absent, say."""


@dataclass(frozen=True)
class Comparison:
    """What is compared: images (n, 3, H, W) in [0, 1] or latents (n, c, h, w), with the reference.

    `requirements`: what was asked of each image, where that is known.
    """

    x: Tensor
    reference: Tensor
    requirements: Sequence[Requirement] | None = None
    _features: dict[Features, tuple[NDArray[np.float64], NDArray[np.float64]]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def features(self, network: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Features (n, d) of both sides, computed once for all metrics that use the network."""
        if network not in self._features:
            self._features[network] = network(self.x), network(self.reference)
        return self._features[network]


@dataclass(frozen=True)
class Measured:
    """Values, one per sample or one for the set, and what to keep in mind when reading them."""

    values: NDArray[np.float64]
    note: str = ""


@dataclass(frozen=True)
class Metric:
    """A named way to compare with the reference.

    `identical`: the value of anything against itself, None where it depends on more. `packages`:
    those whose code computes it. `weights`: file and sha256 of each network file that it needs;
    raises `NotAvailableError` where one is absent. `smallest`: of the sides that it can judge;
    `only`: the one side that it can judge, 0 for any.
    """

    name: str
    measure: Callable[[Comparison], Measured]
    of: Literal["images", "latents"] = "images"
    per: Literal["sample", "set"] = "sample"
    higher_is_better: bool = False
    unit: str = "1"
    identical: float | None = None
    symmetric: bool = True
    packages: tuple[str, ...] = ()
    weights: Callable[[], dict[str, str]] = dict
    resize: str = "none"
    smallest: int = 1
    only: int = 0

    def __call__(self, comparison: Comparison) -> MetricValue:
        """The value, or why there is none."""
        weights: dict[str, str] = {}
        measured, not_available = Measured(np.empty(0)), ""
        try:
            self._check_size(comparison.x)
            weights = self.weights()
            measured = self.measure(comparison)
        except NotAvailableError as reason:
            not_available = f"not available: {reason}"
        return MetricValue(
            metric=self.name,
            per=self.per,
            higher_is_better=self.higher_is_better,
            unit=self.unit,
            version=", ".join(f"{p} {version(p)}" for p in ("tmpdiff_bench", *self.packages)),
            weights=tuple(sorted(weights.items())),
            resize=self.resize,
            samples=len(comparison.x),
            reference_samples=len(comparison.reference),
            values=tuple(map(float, measured.values)),
            not_available=not_available,
            note=measured.note,
        )

    def _check_size(self, x: Tensor) -> None:
        height, width = x.shape[-2:]
        if min(height, width) < self.smallest:
            taken = f"from {self.smallest} pixels a side"
        elif self.only and {height, width} != {self.only}:
            taken = f"of {self.only} x {self.only} pixels"
        else:
            return
        raise NotAvailableError(f"{self.name} takes images {taken}, these are {width} x {height}")


@dataclass(frozen=True)
class MetricValue:
    """Values of one metric with all that they depend on.

    `values` has one entry per sample, or one for the whole set; it is empty where `not_available`
    says why. `weights`: file and sha256 of each network file used; `resize`: what was done to the
    images before the network saw them.
    """

    metric: str
    per: str
    higher_is_better: bool
    unit: str
    version: str
    weights: tuple[tuple[str, str], ...]
    resize: str
    samples: int
    reference_samples: int
    values: tuple[float, ...]
    not_available: str = ""
    note: str = ""

    def to_json(self) -> str:
        """Canonical JSON for a manifest; an infinite PSNR is the text `inf`."""
        fields = asdict(self)
        fields["values"] = [v if np.isfinite(v) else str(v) for v in self.values]
        return json.dumps(fields, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> MetricValue:
        """The value that `to_json` wrote."""
        fields = json.loads(text)
        fields["values"] = tuple(map(float, fields["values"]))
        fields["weights"] = tuple((file, digest) for file, digest in fields["weights"])
        return cls(**fields)
