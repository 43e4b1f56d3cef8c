"""Image and latent fidelity against the reference run."""

from tmpdiff_bench.metrics.base import Metric, MetricValue
from tmpdiff_bench.metrics.evaluate import evaluate_images, evaluate_latents
from tmpdiff_bench.metrics.fidelity import IMAGE_METRICS, LATENT_METRICS
from tmpdiff_bench.metrics.registry import METRICS, get_metric

__all__ = [
    "IMAGE_METRICS",
    "LATENT_METRICS",
    "METRICS",
    "Metric",
    "MetricValue",
    "evaluate_images",
    "evaluate_latents",
    "get_metric",
]
