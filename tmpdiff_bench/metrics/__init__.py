"""Image and latent fidelity against the reference run."""

from tmpdiff_bench.metrics.fidelity import IMAGE_METRICS, LATENT_METRICS

__all__ = ["IMAGE_METRICS", "LATENT_METRICS"]
