"""Plans in a diffusers pipeline with real kernels: predicted speedup against that of whole images.

    python -m benchmarks.deploy [--images 4] [--repeats 8] [--width 512]
        [--out reports/benchmarks/deploy.json]

The embedded sd3 at 20 steps, in one run: (a) a measured cost table, each level in a process of its
own; (b) whole images by the pipeline's own call, text encoders and VAE included, with every plan
and untouched, by turns in an order drawn anew each round; (c) what a plan adds to a step, of calls
with a denoiser that does nothing.
Predictions are the table's: of the steps alone, and of an image with what it takes besides.
Products of the embedded denoiser, 128 wide, are too small for low precision to pay; `--width` puts
a wider one of random weights in its place, on whose values no time depends.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from tmpdiff_bench import deploy
from tmpdiff_bench.commands import ArgumentParser, positive_int, run
from tmpdiff_bench.costs.isolation import MIN_REPEATS, Subject, median_cost
from tmpdiff_bench.costs.measure import measure
from tmpdiff_bench.costs.report import measured_text
from tmpdiff_bench.costs.table import Cost, CostTable
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.pipelines import load_pipeline
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.report.tables import aligned
from tmpdiff_bench.zoo.prompts import mixed_prompts

LEVELS, STEPS, GUIDANCE = ("fp32", "native:bf16", "native:w8a8"), 20, 4.0
HEAD = 64  # width of an attention head in published models
REFERENCE = PrecisionPlan.uniform(LEVELS[0], STEPS)
PLANS = (
    *(PrecisionPlan.uniform(level, STEPS) for level in LEVELS[1:]),
    PrecisionPlan.parse("fp32*3 native:bf16*14 fp32*3"),
    PrecisionPlan.parse("fp32*3 native:w8a8*14 fp32*3"),
    PrecisionPlan(("fp32", "native:w8a8") * (STEPS // 2)),
)


class Images:
    """Two pipelines of sd3 around the same weights: one that runs plans, and one untouched; both
    called on the same prompts and noise each time.
    """

    def __init__(self, weights: str, images: int) -> None:
        self.untouched = load_pipeline("sd3", weights=weights).pipeline
        self.planned = type(self.untouched)(**self.untouched.components)
        for pipe in (self.untouched, self.planned):
            pipe.set_progress_bar_config(disable=True)
        self._prompts = list(mixed_prompts(images, "calibration")["text"])
        deploy.apply(self.planned, REFERENCE, levels=LEVELS)

    def call(self, plan: PrecisionPlan | None) -> tuple[float, float]:
        """Time (ms) of a whole call with a plan, or without any, and how much of it is beside its
        steps: all but the time from the end of the first to that of the last, and one more.
        """
        if plan is not None:
            deploy.apply(self.planned, plan)
        pipe, ends = self.untouched if plan is None else self.planned, []

        def note(_pipe: Any, _step: int, _timestep: Any, inputs: Any) -> Any:
            ends.append(time.perf_counter())
            return inputs

        started = time.perf_counter()
        pipe(
            self._prompts,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            max_sequence_length=24,
            generator=torch.Generator().manual_seed(0),
            callback_on_step_end=note,
        )
        whole = time.perf_counter() - started
        return 1e3 * whole, 1e3 * (whole - (ends[-1] - ends[0]) * STEPS / (STEPS - 1))

    def rounds(self, repeats: int) -> tuple[dict[PrecisionPlan | None, list[float]], float]:
        """Times (ms) of every plan in every round, and the median of what a call at the reference
        takes beside its steps; one round before them warms up.
        """
        jobs: list[PrecisionPlan | None] = [None, REFERENCE, *PLANS]
        times: dict[PrecisionPlan | None, list[float]] = {job: [] for job in jobs}
        beside, rng = [], random.Random(0)
        for round_ in tqdm(range(repeats + 1), desc="images", leave=False):
            for job in rng.sample(jobs, len(jobs)):
                took, rest = self.call(job)
                if round_:
                    times[job].append(took)
                    beside += [rest] if job == REFERENCE else []
        return times, statistics.median(beside)

    def dispatch(self) -> float:
        """What a plan adds to a step (ms), the median of paired calls: at every other step another
        level, and a denoiser that does nothing.
        """
        denoiser = self.untouched.transformer
        kept = denoiser.forward
        deploy.apply(self.planned, PLANS[-1])
        texts = self.untouched.encode_prompt(self._prompts, None, None, max_sequence_length=24)
        names = ("prompt_embeds", "negative_prompt_embeds")
        pooled = ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        arguments = dict(zip((*names, *pooled), texts, strict=True))
        denoiser.forward = lambda hidden_states, **_: (hidden_states,)
        try:
            added = []
            for _ in range(30):
                each = []
                for pipe in (self.planned, self.untouched):
                    started = time.perf_counter()
                    pipe(
                        **arguments,
                        num_inference_steps=STEPS,
                        guidance_scale=GUIDANCE,
                        output_type="latent",
                    )
                    each.append(time.perf_counter() - started)
                added.append(1e3 * (each[0] - each[1]) / STEPS)
        finally:
            denoiser.forward = kept
        return statistics.median(added)


def row(
    plan: PrecisionPlan,
    times: dict[PrecisionPlan | None, list[float]],
    table: CostTable,
    beside: float,
) -> dict[str, Any]:
    """Predicted and measured speedup of a plan; the measured one is paired by round. `beside`: what
    a call takes beside its steps, ms.
    """
    reference = times[REFERENCE]
    measured = median_cost([a / b for a, b in zip(reference, times[plan], strict=True)])
    predicted = (table.cost(REFERENCE) + beside) / (table.cost(plan) + beside)
    return {
        "plan": str(plan) if plan != PLANS[-1] else f"(fp32 native:w8a8)*{STEPS // 2}",
        "of the steps, predicted": table.speedup(plan),
        "of an image, predicted": predicted,
        "of an image, measured": measured.ms,
        "95 %": measured.interval,
        "gap": measured.ms / predicted - 1,
    }


def widened(width: int, folder: Path) -> str:
    """Save the embedded sd3 with a denoiser of random weights `width` wide; the folder's path."""
    pipeline = load_pipeline("sd3").pipeline
    kind, config = type(pipeline.transformer), dict(pipeline.transformer.config)
    if width % HEAD:
        raise UsageError(
            f"--width {width} is no multiple of {HEAD}, the width of an attention head"
        )
    config |= {"attention_head_dim": HEAD, "num_attention_heads": width // HEAD}
    torch.manual_seed(0)
    wide = kind.from_config({**config, "caption_projection_dim": width})
    type(pipeline)(**{**pipeline.components, "transformer": wide}).save_pretrained(folder)
    return str(folder)


def benchmark(title: str, weights: str, images: int, repeats: int) -> dict[str, Any]:
    """All three parts; prints them as they come."""
    call = {"guidance_scale": GUIDANCE}
    subject = Subject("sd3", LEVELS, weights=weights, steps=STEPS, call=call, batch=images)
    found = measure(subject, repeats=repeats)
    table = replace(found.table, model=title)
    print(measured_text(replace(found, table=table)) + "\n")
    ours = Images(weights, images)
    times, beside = ours.rounds(repeats)
    rows = [row(plan, times, table, beside) for plan in PLANS]
    picking = ours.dispatch()
    step = table.levels[LEVELS[0]].ms
    overhead = [a / b - 1 for a, b in zip(times[REFERENCE], times[None], strict=True)]
    whole, reference = median_cost(overhead), median_cost(times[REFERENCE]).ms
    cells = [
        (
            r["plan"],
            *(f"{r[name]:.3f}x" for name in list(r)[1:4]),
            "{:.3f} to {:.3f}".format(*r["95 %"]),
            f"{r['gap']:+.1%}",
        )
        for r in rows
    ]
    header = ("plan", "steps, predicted", "image, predicted", "measured", "95 %", "gap")
    print(aligned([header, *cells]))
    print(
        f"\na whole call at the reference (images: {images}): {reference:.0f} ms, {beside:.0f} of "
        f"them beside its steps\n"
        f"picking the level: {picking:.3f} ms a step, {picking / step:.2%} of a reference step\n"
        f"going to another level: {_of(step, table.switch)} of a step\n"
        f"a whole call with the reference plan against the untouched pipeline: "
        f"{_of(1.0, whole)}"
    )
    return {
        "model": title,
        "machine": f"{table.device}, {platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "images": images,
        "repeats": repeats,
        "steps": STEPS,
        "a step, ms": {level: [cost.ms, cost.interval] for level, cost in table.levels.items()},
        "a switch, ms": [table.switch.ms, table.switch.interval],
        "a call at the reference, ms": reference,
        "of it beside its steps, ms": beside,
        "plans": rows,
        "picking the level, ms a step": picking,
        "picking the level, of a step": picking / step,
        "reference plan against untouched": [whole.ms, whole.interval],
    }


def _of(whole: float, part: Cost) -> str:
    low, high = part.interval or (part.ms, part.ms)
    return f"{part.ms / whole:+.2%} ({low / whole:+.2%} to {high / whole:+.2%})"


def main(argv: Sequence[str]) -> None:
    """Measure, print, and save as JSON."""
    parser = ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=positive_int, default=4)
    parser.add_argument("--repeats", type=positive_int, default=8, help=f"{MIN_REPEATS} or more")
    parser.add_argument("--width", type=positive_int, help="(default: the embedded denoiser's)")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/deploy.json"))
    options = parser.parse_args(argv)
    if options.repeats < MIN_REPEATS:
        raise UsageError(f"--repeats {options.repeats}: an interval needs at least {MIN_REPEATS}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        title, weights = "sd3 (embedded)", "embedded"
        if options.width is not None:
            title = f"sd3 ({options.width} wide, random weights)"
            weights = widened(options.width, Path(folder))
        report = benchmark(title, weights, options.images, options.repeats)
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
