"""What runs on a model: its pipelines, levels and samples, each made once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import pandas as pd
import torch

from tmpdiff_bench.levels import Level, LevelBank
from tmpdiff_bench.noise import initial_noise
from tmpdiff_bench.pipelines import Conditioning, LoadedModel, StepwisePipeline, load_model
from tmpdiff_bench.store import CellStore
from tmpdiff_bench.suite.v1 import GUIDANCE, THREE
from tmpdiff_bench.trajectory import PrefixEngine, Workload
from tmpdiff_bench.zoo.captions import Requirement
from tmpdiff_bench.zoo.prompts import load_prompts

LEVELS = THREE  # every level set of the suite is a part of it
STATE_MEMORY = 2**29


@dataclass(frozen=True)
class Prompts:
    """The first prompts of a split, all languages or one, run with one noise seed."""

    prompt_set: str
    split: str
    count: int
    seed: int
    language: str | None = None

    @cached_property
    def table(self) -> pd.DataFrame:
        """Columns prompt_id, text, language and requirement (JSON)."""
        found = load_prompts(self.prompt_set, self.split)
        if self.language is not None:
            found = found[found["language"] == self.language]
        return found.head(self.count).reset_index(drop=True)

    @property
    def samples(self) -> list[tuple[str, int]]:
        return [(prompt, self.seed) for prompt in self.table["prompt_id"]]

    def requirements(self) -> list[Requirement]:
        """What each prompt asks to be seen."""
        return [Requirement.from_json(text) for text in self.table["requirement"]]


class Bench:
    """A model ready to run. `on_nfe` is told the network evaluations just spent.

    Raises:
        UsageError: the model's weights are not there.
    """

    def __init__(
        self,
        model: str,
        store: CellStore,
        on_nfe: Callable[[int], None],
        dtype: str = "fp32",
    ) -> None:
        self.model: LoadedModel = load_model(model, dtype=dtype)
        self.store, self.on_nfe = store, on_nfe
        self._pipelines: dict[int, StepwisePipeline] = {}
        self._encoded: dict[str, Conditioning] = {}

    def pipeline(self, steps: int) -> StepwisePipeline:
        """The denoising loop of some steps."""
        if steps not in self._pipelines:
            self._pipelines[steps] = self.model.stepwise(steps=steps, guidance=GUIDANCE)
        return self._pipelines[steps]

    @cached_property
    def bank(self) -> LevelBank:
        """All levels, made when the first run needs them."""
        pipeline = self.pipeline(8)
        return LevelBank(pipeline.denoiser, LEVELS, pipeline.quantized)

    def nfe(self, steps: int) -> list[int]:
        """Network evaluations of every step of one sample."""
        return [self.pipeline(steps).nfe(step) for step in range(steps)]

    def engine(self, prompts: Prompts, steps: int, *, max_batch: int | None = None) -> PrefixEngine:
        """An engine whose runs have all samples (or `max_batch`) in one batch, and nothing else in
        it: then the bits of a run depend on its plan alone, whatever else was asked for, as long as
        plans are run by `each`, or alone.
        """
        pipeline = self.pipeline(steps)
        return PrefixEngine(
            pipeline,
            self.bank,
            self._conditioning(prompts),
            initial_noise(prompts.samples, pipeline.latent_shape),
            max_batch=max_batch or len(prompts.table),
            state_memory=STATE_MEMORY,
            on_nfe=self.on_nfe,
        )

    def key(self, prompts: Prompts, steps: int, **more: object) -> str:
        """Of a cell: everything that changes its numbers."""
        texts = dict(zip(prompts.table["prompt_id"], prompts.table["text"], strict=True))
        pipeline = self.pipeline(steps)
        workload = Workload(
            model=self.model.family,
            weights=self.model.weights,
            weights_digest=self.model.digest,
            sampler=_settings(self.model.pipeline.scheduler),
            steps=steps,
            guidance=GUIDANCE,
            resolution=pipeline.resolution,
            prompts=texts,
            seeds=(prompts.seed,),
            dtype=str(next(pipeline.denoiser.parameters()).dtype).removeprefix("torch."),
            max_batch=len(texts),
        )
        levels = {name: asdict(Level.parse(name)) for name in LEVELS}
        return workload.cell_key(prompts.samples, suite_levels=levels, **more)

    def _conditioning(self, prompts: Prompts) -> Conditioning:
        """Each prompt is encoded alone, so that its numbers do not depend on the others."""
        with torch.no_grad():
            for text in prompts.table["text"]:
                if text not in self._encoded:
                    self._encoded[text] = self.pipeline(8).encode([text])
        each = [self._encoded[text] for text in prompts.table["text"]]
        return Conditioning(
            {k: torch.cat([c.positive[k] for c in each]) for k in each[0].positive},
            {k: torch.cat([c.negative[k] for c in each]) for k in each[0].negative},
        )


def _settings(scheduler: Any) -> dict[str, str]:
    """Class and public settings of a diffusers scheduler, as JSON (infinities become text)."""
    public = {k: str(v) for k, v in scheduler.config.items() if not k.startswith("_")}
    return {"class": type(scheduler).__name__, **public}
