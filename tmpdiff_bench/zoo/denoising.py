"""Training of a denoiser alone: the text encoders come trained, from sd3, and stay as they are."""

from __future__ import annotations

import shutil
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tmpdiff_bench.zoo.captions import Requirement
from tmpdiff_bench.zoo.evaluation import load_recogniser, sample_images, scene_accuracy
from tmpdiff_bench.zoo.latents import LatentSet
from tmpdiff_bench.zoo.prompts import mixed_prompts

PROMPT_DROPOUT = 0.1
PLACED_ITERATIONS = 300  # the first see single placed objects only: they teach where things go
VALIDATION_PROMPTS = 48


class Recipe(Protocol):
    """How one family is trained: its pipeline, and the loss of a batch."""

    name: str
    pipeline: Any
    denoiser: nn.Module

    def loss(
        self,
        latents: Tensor,
        clip: Tensor,
        t5: Tensor,
        dropped: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """Loss of latents (n, c, h, w) as `LatentSet` has them, with token ids (n, 24) of both
        tokenizers of sd3; rows in `dropped` are to go without their prompt.
        """
        ...


class DenoiserPart:
    """Trains the denoiser of a recipe."""

    def __init__(
        self, recipe: Recipe, training: LatentSet, validation: LatentSet, *, batch: int = 64
    ) -> None:
        self.recipe, self.name = recipe, recipe.name
        self.modules = nn.ModuleDict({"denoiser": recipe.denoiser})
        self._training, self._validation, self._batch = training, validation, batch
        self._placed = training.placed.nonzero()
        if shutil.which("c++"):  # faster iterations; without a compiler all works as well
            recipe.denoiser.compile(dynamic=False)

    def is_hidden_matrix(self, parameter: str) -> bool:
        value = self.modules.get_parameter(parameter)
        return value.ndim == 2 and "blocks." in parameter and min(value.shape) > 8

    def loss(self, iteration: int, generator: torch.Generator) -> Tensor:
        data, n = self._training, self._batch
        if iteration < PLACED_ITERATIONS:
            chosen = self._placed[torch.randint(len(self._placed), (n,), generator=generator)]
            rows, which = chosen.unbind(1)
        else:
            rows = torch.randint(len(data), (n,), generator=generator)
            which = torch.randint(data.clip.shape[1], (n,), generator=generator)
        dropped = torch.rand(n, generator=generator) < PROMPT_DROPOUT
        return self.recipe.loss(
            data.latents[rows].float(),
            data.clip[rows, which],
            data.t5[rows, which],
            dropped,
            generator,
        )

    def evaluate(self) -> dict[str, float]:
        """Loss on held-out scenes, and object accuracy of samples on calibration prompts."""
        data, generator = self._validation, torch.Generator().manual_seed(1)
        losses = []
        with torch.compiler.set_stance("force_eager"):
            for start in range(0, len(data), self._batch):
                rows = slice(start, start + self._batch)
                clip, t5 = data.clip[rows, 0], data.t5[rows, 0]
                dropped = torch.zeros(len(clip), dtype=torch.bool)
                latents = data.latents[rows].float()
                losses.append(self.recipe.loss(latents, clip, t5, dropped, generator))
            prompts = mixed_prompts(VALIDATION_PROMPTS, "calibration")
            images = sample_images(self.recipe.pipeline, self.name, prompts)
        said = [Requirement.from_json(text) for text in prompts["requirement"]]
        found = scene_accuracy(load_recogniser(), images, said)
        return {
            "validation_loss": float(torch.stack(losses).mean()),
            "object_accuracy": found.objects,
            "scene_accuracy": found.scenes,
        }
