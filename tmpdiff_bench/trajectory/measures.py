"""Which metrics a recording holds, and their values for a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.metrics import METRICS, Metric, get_metric
from tmpdiff_bench.metrics.base import Comparison
from tmpdiff_bench.zoo.captions import Requirement

ALWAYS = ("latent_rmse", "latent_mse")  # what latents give at once, and the analysis builds on
DEFAULT = (*ALWAYS, "image_rmse", "one_minus_ssim")


def chosen_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """`ALWAYS`, then the metrics asked for.

    Raises:
        UsageError: an unknown name, with the nearest one, or a metric of whole sets.
    """
    for name in names:
        if get_metric(name).per == "set":
            raise UsageError(
                f"{name} compares sets of images: a recording holds values per prompt and seed; "
                "use tmpdiff_bench.metrics.evaluate_images on images of your own"
            )
    return tuple(dict.fromkeys((*ALWAYS, *names)))


class Measures:
    """The metrics of a recording, tried on one pair first, so that what can't be had is known
    before anything runs. `requirements`: what was asked of the images, by prompt id.

    Raises:
        UsageError: as `chosen_metrics`.
    """

    def __init__(
        self,
        names: Sequence[str],
        resolution: tuple[int, int],
        requirements: Mapping[str, Requirement] | None = None,
    ) -> None:
        asked = [METRICS[name] for name in chosen_metrics(names)]
        self._requirements = dict(requirements or {})
        pair = torch.zeros(1, 3, *resolution)
        known = list(self._requirements.values())[:1] or None
        tried = {metric: metric(Comparison(pair, pair, known)) for metric in asked}
        self._metrics = [metric for metric in asked if not tried[metric].not_available]
        self.not_available = {
            metric.name: value.not_available
            for metric, value in tried.items()
            if value.not_available
        }
        # for a manifest: all that values depend on, and which metrics are errors: 0 for the
        # reference itself, so that errors of steps can be asked to add up
        self.about: dict[str, dict[str, Any]] = {
            metric.name: {
                "error": metric.identical == 0,
                "higher_is_better": metric.higher_is_better,
                "unit": metric.unit,
                "version": value.version,
                "weights": dict(value.weights),
                "resize": value.resize,
                "not_available": value.not_available,
            }
            for metric, value in tried.items()
        }

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics that there are values of."""
        return tuple(metric.name for metric in self._metrics)

    @property
    def of_any_run(self) -> tuple[str, ...]:
        """Those that the reference run has a value of its own of."""
        return tuple(metric.name for metric in self._of_any_run)

    @property
    def _of_any_run(self) -> list[Metric]:
        return [metric for metric in self._metrics if not metric.symmetric]

    @property
    def key(self) -> dict[str, dict[str, str]]:
        """What a stored value depends on: metrics and their weights; empty for the default ones."""
        if self.names == DEFAULT:
            return {}
        return {name: self.about[name]["weights"] for name in self.names}

    def values(
        self, latents: Tensor, reference: Tensor, images: Tensor, pictures: Tensor, ids: list[str]
    ) -> NDArray[np.float64]:
        """Values (M, n) of a run's latents and images against the reference's (`pictures`)."""
        wanted = [self._requirements[i] for i in ids] if self._requirements else None
        sides = {
            "latents": Comparison(latents, reference),
            "images": Comparison(images, pictures, wanted),
        }
        return np.array([self._value(metric, sides[metric.of]) for metric in self._metrics])

    def of_reference(self, pictures: Tensor, ids: list[str]) -> NDArray[np.float64]:
        """Values (A, n) of the reference's own images, of the metrics `of_any_run`."""
        wanted = [self._requirements[i] for i in ids] if self._requirements else None
        comparison = Comparison(pictures, pictures, wanted)
        return np.array([self._value(metric, comparison) for metric in self._of_any_run])

    def _value(self, metric: Metric, comparison: Comparison) -> tuple[float, ...]:
        value = metric(comparison)
        if value.not_available:  # a weight file that went while the recording ran
            raise UsageError(f"{metric.name}: {value.not_available}")
        return value.values
