"""What runs on a model: its levels and samples, each made once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from sys import intern
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tmpdiff_bench.levels import Level, LevelBank
from tmpdiff_bench.pipelines import LoadedModel, denoisers, load_pipeline
from tmpdiff_bench.pipelines.calls import Call
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.store import CellStore
from tmpdiff_bench.suite.v1 import THREE
from tmpdiff_bench.trajectory import NonFiniteLatentsError, PrefixEngine, Workload
from tmpdiff_bench.trajectory.engine import PlanRun, level_banks
from tmpdiff_bench.trajectory.workload import plain, sampler
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
    def texts(self) -> dict[str, str]:
        """By id, the same object whenever the text is the same: engines tell prompts so."""
        table = self.table
        return dict(zip(table["prompt_id"], map(intern, table["text"]), strict=True))

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
        self.model: LoadedModel = load_pipeline(model, dtype=dtype)
        self.store, self.on_nfe = store, on_nfe
        self._memos: dict[Any, Any] = {}  # what encoders returned, by batch

    @cached_property
    def banks(self) -> dict[str, LevelBank]:
        """All levels, made when the first run needs them."""
        return level_banks(self.model.pipeline, LEVELS)

    def nfe(self, prompts: Prompts, steps: int) -> list[int]:
        """Network evaluations of every step of one sample, counted in a run of the first."""
        one = replace(prompts, count=1)
        key = self.key(one, steps, purpose="nfe")

        def counted() -> dict[str, NDArray[np.int64]]:
            engine = self.engine(one, steps)
            engine.evaluate([PrecisionPlan.uniform(LEVELS[0], steps)])
            return {"nfe": np.array(engine.nfe_per_step)}

        return [int(nfe) for nfe in self.store.kept(key, counted)["nfe"]]

    def runs(
        self,
        prompts: Prompts,
        steps: int,
        plans: Sequence[PrecisionPlan],
        *,
        max_batch: int | None = None,
    ) -> Iterator[tuple[PrecisionPlan, PlanRun]]:
        """Plans with their runs. Raises `NonFiniteLatentsError` where one diverges."""
        for index, run in self.engine(prompts, steps, max_batch=max_batch).each(plans):
            if isinstance(run, NonFiniteLatentsError):
                raise run
            yield plans[index], run

    def engine(self, prompts: Prompts, steps: int, *, max_batch: int | None = None) -> PrefixEngine:
        """An engine whose runs have all samples (or `max_batch`) in one batch, and nothing else in
        it: then the bits of a run depend on its plan alone, whatever else was asked for.
        """
        return PrefixEngine(
            self.model.pipeline,
            self.banks,
            Call(
                {**self.model.defaults, "num_inference_steps": steps},
                {"prompt": list(prompts.texts.values())},
                self._workload(prompts, steps).generator_seeds,
            ),
            max_batch=max_batch or len(prompts.table),
            state_memory=STATE_MEMORY,
            on_nfe=self.on_nfe,
            memos=self._memos,
        )

    def key(self, prompts: Prompts, steps: int, **more: object) -> str:
        """Of a cell: everything that changes its numbers."""
        levels = {name: asdict(Level.parse(name)) for name in LEVELS}
        workload = self._workload(prompts, steps)
        return workload.cell_key(prompts.samples, suite_levels=levels, **more)

    def _workload(self, prompts: Prompts, steps: int) -> Workload:
        pipe = self.model.pipeline
        denoiser = next(iter(denoisers(pipe).values()))
        return Workload(
            model=self.model.name,
            weights=self.model.weights,
            weights_digest=self.model.digest,
            sampler=sampler(pipe.scheduler),
            steps=steps,
            prompts=prompts.texts,
            seeds=(prompts.seed,),
            dtype=str(next(denoiser.parameters()).dtype).removeprefix("torch."),
            max_batch=len(prompts.table),
            arguments=plain(self.model.defaults),
        )
