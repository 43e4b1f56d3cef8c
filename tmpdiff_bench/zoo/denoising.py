"""Training of a denoiser on latents of scenes: what all families share.

For all but sd3 the denoiser trains alone: their text encoders come trained, from sd3, and stay.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from tmpdiff_bench.noise import generator_seed
from tmpdiff_bench.pipelines.calls import Call
from tmpdiff_bench.pipelines.embedded import call_defaults
from tmpdiff_bench.zoo.captions import Requirement
from tmpdiff_bench.zoo.latents import LatentSet
from tmpdiff_bench.zoo.prompts import mixed_prompts
from tmpdiff_bench.zoo.recogniser import Recogniser, judge, load_recogniser, read


@dataclass(frozen=True)
class SceneAccuracy:
    """Figures over images: share of asked objects found; share of images right in everything."""

    objects: float
    scenes: float
    images: int


def scene_accuracy(
    recogniser: Recogniser, images: Tensor, requirements: Sequence[Requirement]
) -> SceneAccuracy:
    """Accuracy of images (n, 3, 64, 64) in [0, 1] against what was asked of each."""
    verdicts = [
        judge(requirement, reading)
        for requirement, reading in zip(requirements, read(recogniser, images), strict=True)
    ]
    return SceneAccuracy(
        objects=sum(v.found for v in verdicts) / sum(v.asked for v in verdicts),
        scenes=sum(v.all for v in verdicts) / len(verdicts),
        images=len(verdicts),
    )


@torch.no_grad()
def sample_images(
    pipeline: Any,
    model: str,
    prompts: pd.DataFrame,
    *,
    steps: int = 20,
    seed: int = 0,
    batch: int = 32,
) -> Tensor:
    """Images (n, 3, 64, 64) in [0, 1] of a pipeline, called as the embedded `model` is."""
    pipeline.set_progress_bar_config(disable=True)
    call = Call(
        shared={**call_defaults(model), "num_inference_steps": steps, "output_type": "pt"},
        each={"prompt": list(prompts["text"])},
        seeds=[generator_seed(prompt, seed) for prompt in prompts["prompt_id"]],
    )
    found = []
    for start in tqdm(range(0, len(call), batch), desc="sampling", unit="batch", leave=False):
        rows = range(start, min(start + batch, len(call)))
        found.append(pipeline(**call.rows(rows).arguments()).images.float().cpu())
    return torch.cat(found)


PROMPT_DROPOUT = 0.1
VALIDATION_PROMPTS = 48
# Of the noise levels of flow matching, in training as in sampling (Esser et al. 2024, eq. 23), and
# with uniform times: logit-normal levels are above 0.93 once in 200 draws, and layout is settled
# early.
SHIFT = 3.0


@dataclass(frozen=True, eq=False)
class Batch:
    """`latents` (n, c, h, w) as `LatentSet` has them; `clip`, `t5` (n, 24) token ids of sd3's
    tokenizers; rows that are `dropped` (n,) go without their prompt.
    """

    latents: Tensor
    clip: Tensor
    t5: Tensor
    dropped: Tensor


class Recipe:
    """How a family is trained: its pipeline, what of it, and the loss of a batch."""

    name: str
    placed_iterations = 300  # these see single placed objects only: they teach where things go
    trained: tuple[str, ...] = ("transformer",)

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self.denoiser: nn.Module = getattr(pipeline, self.trained[0])

    def is_hidden_matrix(self, parameter: str, value: Tensor) -> bool:
        """Whether Muon trains a parameter."""
        return value.ndim == 2 and "blocks." in parameter and min(value.shape) > 8

    def noised(self, latents: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Times (n,), the noisy latents there and their velocities: flow matching (Esser et al.
        2024, eq. 12), with noise levels uniform over the sampler's steps.
        """
        time = torch.rand(len(latents), generator=generator)
        sigma = SHIFT * time / (1 + (SHIFT - 1) * time)
        noise = torch.randn(latents.shape, generator=generator)
        return sigma, torch.lerp(latents, noise, sigma[:, None, None, None]), noise - latents

    def predicted(self, noisy: Tensor, time: Tensor, batch: Batch) -> Tensor:
        """The velocities (n, c, h, w) that the denoiser predicts."""
        raise NotImplementedError

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Mean squared error of the velocities."""
        time, noisy, velocity = self.noised(batch.latents, generator)
        # the fused attention kernel for CPUs is slow backwards at these lengths
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            found = self.predicted(noisy, time, batch)
        return F.mse_loss(found.float(), velocity)


def diffused(
    latents: Tensor, kept: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Timesteps (n,) uniform over a variance-preserving process, the noisy latents there, and their
    velocities (Salimans & Ho 2022, "Progressive Distillation", appendix D).

    `kept` is the scheduler's cumulated product of alphas: the share of signal power.
    """
    timestep = torch.randint(len(kept), (len(latents),), generator=generator)
    signal = kept[timestep].sqrt()[:, None, None, None]
    spread = (1 - kept[timestep]).sqrt()[:, None, None, None]
    noise = torch.randn(latents.shape, generator=generator)
    return timestep, signal * latents + spread * noise, signal * noise - spread * latents


def zero_gates(norms: Iterable[Any], transformer: Any) -> None:
    """adaLN-zero: every block starts as the identity (Peebles & Xie 2023)."""
    for norm in norms:
        nn.init.zeros_(norm.linear.weight)
        nn.init.zeros_(norm.linear.bias)
    nn.init.zeros_(transformer.norm_out.linear.weight)
    nn.init.zeros_(transformer.proj_out.weight)


class DenoiserPart:
    """Trains what a recipe says."""

    def __init__(
        self, recipe: Recipe, training: LatentSet, validation: LatentSet, *, batch: int = 64
    ) -> None:
        self.recipe, self.name = recipe, recipe.name
        self.modules = nn.ModuleDict(
            {name: getattr(recipe.pipeline, name) for name in recipe.trained}
        )
        self._training, self._validation, self._batch = training, validation, batch
        self._placed = training.placed.nonzero()
        if shutil.which("c++"):  # 1.25x faster iterations; without a compiler all works as well
            recipe.denoiser.compile(dynamic=False)

    def is_hidden_matrix(self, parameter: str) -> bool:
        return self.recipe.is_hidden_matrix(parameter, self.modules.get_parameter(parameter))

    def loss(self, iteration: int, generator: torch.Generator) -> Tensor:
        data, n = self._training, self._batch
        if iteration < self.recipe.placed_iterations:
            chosen = self._placed[torch.randint(len(self._placed), (n,), generator=generator)]
            rows, which = chosen.unbind(1)
        else:
            rows = torch.randint(len(data), (n,), generator=generator)
            which = torch.randint(data.clip.shape[1], (n,), generator=generator)
        dropped = torch.rand(n, generator=generator) < PROMPT_DROPOUT
        latents = data.latents[rows].float()
        batch = Batch(latents, data.clip[rows, which], data.t5[rows, which], dropped)
        return self.recipe.loss(batch, generator)

    def evaluate(self) -> dict[str, float]:
        """Loss on held-out scenes, and object accuracy of samples on calibration prompts."""
        data, generator = self._validation, torch.Generator().manual_seed(1)
        losses = []
        with torch.compiler.set_stance("force_eager"):
            for start in range(0, len(data), self._batch):
                rows = slice(start, start + self._batch)
                latents = data.latents[rows].float()
                kept = torch.zeros(len(latents), dtype=torch.bool)
                batch = Batch(latents, data.clip[rows, 0], data.t5[rows, 0], kept)
                losses.append(self.recipe.loss(batch, generator))
            prompts = mixed_prompts(VALIDATION_PROMPTS, "calibration")
            images = sample_images(self.recipe.pipeline, self.name, prompts)
        said = [Requirement.from_json(text) for text in prompts["requirement"]]
        found = scene_accuracy(load_recogniser(), images, said)
        return {
            "validation_loss": float(torch.stack(losses).mean()),
            "object_accuracy": found.objects,
            "scene_accuracy": found.scenes,
        }
