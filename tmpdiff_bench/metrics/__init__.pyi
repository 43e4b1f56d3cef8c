from .base import Metric as Metric
from .base import MetricValue as MetricValue
from .fidelity import IMAGE_METRICS as IMAGE_METRICS
from .fidelity import LATENT_METRICS as LATENT_METRICS
from .registry import METRICS as METRICS
from .registry import evaluate_images as evaluate_images
from .registry import evaluate_latents as evaluate_latents
from .registry import get_metric as get_metric
