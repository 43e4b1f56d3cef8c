"""From what a user asks for to what is run: weights, prompts, call arguments and seeds, checked."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from PIL import Image

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.experiment import Experiment
from tmpdiff_bench.levels.devices import check_device_runs
from tmpdiff_bench.pipelines import LoadedModel, check_device, denoisers, load_pipeline
from tmpdiff_bench.pipelines.calls import Call, check_call, cut_prompts, read_argument
from tmpdiff_bench.pipelines.loading import dtype_of
from tmpdiff_bench.pipelines.own import OwnModules, check_sources
from tmpdiff_bench.plan import JointPlan
from tmpdiff_bench.prompts import prompt_source, take
from tmpdiff_bench.store import digest
from tmpdiff_bench.trajectory.assembly import DEFAULT, chosen_metrics
from tmpdiff_bench.trajectory.design import designed
from tmpdiff_bench.trajectory.engine import STATE_MEMORY
from tmpdiff_bench.trajectory.workload import Workload, plain, sampler
from tmpdiff_bench.zoo.captions import Requirement

_NO_ARGUMENTS = ("prompt_id", "text", "split", "dataset", "language", "requirement")


@dataclass(frozen=True)
class Setup:
    """What is recorded: a pipeline, the arguments of its calls, and `workload`, which says the same
    in JSON. `levels[0]` is the reference; some may be `modules` of the user's own.

    `capture`: "terminal" keeps the latents of the reference at every step and the final ones of all
    other runs; "trajectory" those of single runs at every step as well. The table has the `metrics`
    of every run. `requirements`: what prompts ask for, by id. `image_size`: height and width that
    are expected, pixels, so that metrics are tried before anything runs. `state_memory` bounds the
    bytes of steps held, `residency` is that of `LevelBank`. `about` is added to the manifest.
    """

    loaded: LoadedModel
    call: Call
    workload: Workload
    levels: tuple[str, ...]
    dataset: str
    joint: tuple[JointPlan, ...] = ()
    capture: str = "terminal"
    metrics: tuple[str, ...] = DEFAULT
    requirements: Mapping[str, Requirement] | None = None
    image_size: tuple[int, int] = (64, 64)
    residency: str = "resident"
    state_memory: int = STATE_MEMORY
    about: Mapping[str, Any] = field(default_factory=dict)
    modules: OwnModules | None = None


def prepare(experiment: Experiment) -> Setup:
    """Load and check all that an experiment names; what weights take is printed on stderr first.

    Raises:
        UsageError: a value that can't be used, with the way out.
    """
    chosen_metrics(experiment.metrics)
    known = [name for name in experiment.levels if name not in experiment.modules]
    check_device_runs(known, check_device(experiment.device))
    check_sources(experiment.modules)
    source = prompt_source(experiment.prompt_set, experiment.prompts)
    found = source.load()
    count = source.default_count if experiment.num_prompts is None else experiment.num_prompts
    chosen = take(found, "calibration", count)
    loaded = _loaded(experiment)
    modules = OwnModules(experiment.modules, tuple(denoisers(loaded.pipeline)))
    shared, each = _arguments(experiment, loaded, chosen)
    ids = list(chosen["prompt_id"])
    own = {name: values for name, values in each.items() if name != "prompt"}
    workload = Workload(
        model=loaded.name,
        weights=loaded.weights,
        weights_digest=loaded.digest,
        sampler=sampler(loaded.pipeline.scheduler),
        steps=experiment.steps,
        prompts=dict(zip(ids, chosen["text"] if "prompt" in each else ids, strict=True)),
        seeds=tuple(range(experiment.seed, experiment.seed + experiment.num_seeds)),
        dtype=str(dtype_of(loaded.pipeline)).removeprefix("torch."),
        max_batch=experiment.max_batch,
        arguments=plain({k: v for k, v in shared.items() if k != "num_inference_steps"}),
        columns={name: dict(zip(ids, plain(v), strict=True)) for name, v in own.items()},
        vae_tile=experiment.vae_tile,
        quantized=experiment.quantized,
        adapter=loaded.adapter,
    )
    repeated = {name: [v for v in values for _ in workload.seeds] for name, values in each.items()}
    cut = cut_prompts(loaded.pipeline, each.get("prompt", ()), shared)
    if cut:
        warnings.warn(f"{len(cut)} prompts are longer than the tokenizer takes", stacklevel=2)
    return Setup(
        loaded=loaded,
        call=Call(shared, repeated, workload.generator_seeds),
        workload=workload,
        levels=experiment.levels,
        modules=modules,
        dataset=found.name,
        joint=designed(experiment),
        capture=experiment.capture,
        metrics=experiment.metrics,
        requirements=_requirements(chosen),
        image_size=expected_size(loaded.pipeline, shared),
        residency=experiment.residency,
        state_memory=experiment.state_memory,
        about={
            "prompt_set": {"name": found.name, "split": "calibration", **found.origin},
            "prompts_digest": digest(workload.prompts),
            "long_prompts": cut,
        },
    )


def _loaded(experiment: Experiment) -> LoadedModel:
    """The pipeline, in stages: text encoders first."""
    named = f"{experiment.model} ({experiment.weights})" if experiment.model else experiment.weights
    return load_pipeline(
        experiment.model,
        weights=experiment.weights,
        revision=experiment.revision,
        variant=experiment.variant,
        device=experiment.device,
        dtype=experiment.dtype,
        scheduler=experiment.scheduler,
        lora=experiment.lora,
        vae_tile=experiment.vae_tile,
        staged=True,
        announce=lambda sizes: print(f"{named} in {experiment.dtype}: {sizes}", file=sys.stderr),
    )


def _arguments(
    experiment: Experiment, loaded: LoadedModel, prompts: pd.DataFrame
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Arguments of `__call__`: those that all samples share, and one value a prompt."""
    pipe = loaded.pipeline
    columns = [str(name) for name in prompts.columns if name not in _NO_ARGUMENTS]
    each = {name: list(prompts[name]) for name in columns}
    if "text" in prompts:
        each["prompt"] = list(prompts["text"])
    if twice := next((name for name in experiment.call if name in each), None):
        raise UsageError(
            f"{twice} is a column of the prompts, and named by --call too: leave one of them out"
        )
    check_call(pipe, (*experiment.call, *each))
    shared = {k: v for k, v in loaded.defaults.items() if k not in each}
    shared |= {name: read_argument(pipe, name, v) for name, v in experiment.call.items()}
    read = {name: [read_argument(pipe, name, v) for v in values] for name, values in each.items()}
    return {**shared, "num_inference_steps": experiment.steps}, read


def _requirements(prompts: pd.DataFrame) -> dict[str, Requirement] | None:
    """What prompts ask for, by id; None where only their texts are known."""
    if "requirement" not in prompts:
        return None
    texts = zip(prompts["prompt_id"], prompts["requirement"], strict=True)
    return {prompt: Requirement.from_json(text) for prompt, text in texts}


def expected_size(pipe: Any, arguments: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width that images will have, as far as a pipeline tells before it runs."""
    side = getattr(pipe, "default_sample_size", None)
    if side is None:
        configs: list[Any] = [module.config for module in denoisers(pipe).values()]
        side = next((c["sample_size"] for c in configs if c.get("sample_size")), 64)
    factor = getattr(pipe, "vae_scale_factor", 1)
    sides = side if isinstance(side, list | tuple) else (side, side)
    whole = {"height": sides[0] * factor, "width": sides[-1] * factor}
    image: Any = arguments.get("image")
    if isinstance(image, Image.Image):
        whole = {"height": image.height, "width": image.width}
    height, width = (int(arguments.get(name) or whole[name]) for name in ("height", "width"))
    return height, width
