"""Version 1 of the suite: its tasks and rules. Frozen: any change is a version 2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tmpdiff_bench.suite.tasks import Task

VERSION = 1
MODELS = ("sd3", "flux", "pixart", "sdxl")
PROMPT_SETS = ("scenes-attributes", "scenes-relations", "scenes-counts")
NFE_PER_STEP = 2  # of every embedded model: guidance needs a second pass
SEED = 0
TWO, THREE = ("fp32", "w4a4"), ("fp32", "w8a8", "w4a4")
# a card whose tensor cores run both integer formats, so that every level's cost is a real format's
COST_TABLE = "roofline-{model}-rtx4090-1024"
# Uniform w8a8 has a speedup of 1.743, 2.198, 1.631 and 2.160; its (rounded down) is the last target
# of two levels and the first of three, where it is an allocation itself. What w4a4 alone reaches
# (2.056, 2.828, 1.848, 2.734) is out of reach of any other plan, hence no target.
TARGETS: Mapping[str, Mapping[tuple[str, ...], tuple[float, float, float]]] = {
    "sd3": {TWO: (1.25, 1.5, 1.74), THREE: (1.74, 1.82, 1.9)},
    "flux": {TWO: (1.5, 1.8, 2.19), THREE: (2.19, 2.35, 2.55)},
    "pixart": {TWO: (1.2, 1.4, 1.63), THREE: (1.63, 1.7, 1.77)},
    "sdxl": {TWO: (1.5, 1.8, 2.15), THREE: (2.15, 2.3, 2.5)},
}
METRICS = ("latent_rmse", "ssim", "psnr", "lpips-scenes", "scene_objects", "scene_all")
OF_THE_IMAGE_ALONE = ("scene_objects", "scene_all")  # the metrics that a reference has too
MATCHED = "latent_rmse"  # the error that allocators minimise


@dataclass(frozen=True)
class Profile:
    """How much of the suite is run: `steps` on the first prompt set, `steps_elsewhere` on the
    others; `calibration` prompts that allocators see, `evaluation` prompts that plans are scored
    on, one noise seed each.
    """

    name: str
    models: tuple[str, ...]
    prompt_sets: tuple[str, ...]
    steps: tuple[int, ...]
    steps_elsewhere: tuple[int, ...]
    calibration: int
    evaluation: int

    def tasks(self) -> list[Task]:
        """All tasks, those that share measurements together."""
        return [
            Task(model, prompt_set, levels, COST_TABLE.format(model=model), target, steps)
            for model in self.models
            for prompt_set in self.prompt_sets
            for steps in (self.steps if prompt_set == PROMPT_SETS[0] else self.steps_elsewhere)
            for levels, targets in TARGETS[model].items()
            for target in targets
        ]


FULL = Profile("full", MODELS, PROMPT_SETS, (8, 20), (20,), calibration=4, evaluation=8)
QUICK = Profile("quick", ("sd3", "flux"), PROMPT_SETS[:1], (8,), (), calibration=2, evaluation=2)
PROFILES = {profile.name: profile for profile in (FULL, QUICK)}
