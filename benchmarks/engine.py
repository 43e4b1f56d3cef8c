"""The prefix tree against one pipeline call per plan, in one run, on the embedded sd3.

    python benchmarks/engine.py [--steps 20] [--samples 4]

Both compute all single plans of fp32 and w4a4 from the same noise; the ratio of their times, the
ratio that the network evaluations predict, and the largest difference of the results are printed.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from tmpdiff_bench.levels import LevelBank
from tmpdiff_bench.noise import initial_noise
from tmpdiff_bench.pipelines import load_model
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.trajectory import PrefixTree, evaluate
from tmpdiff_bench.zoo.prompts import mixed_prompts


def main() -> None:
    """Time both ways once, after a warm-up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--samples", type=int, default=4)
    options = parser.parse_args()
    loaded = load_model("sd3")
    pipe = loaded.pipeline
    stepwise = loaded.stepwise(steps=options.steps, guidance=4.0)
    bank = LevelBank(stepwise.denoiser, ("fp32", "w4a4"), stepwise.quantized)
    texts = list(mixed_prompts(options.samples, "calibration")["text"])
    noise = initial_noise([(text, 0) for text in texts], stepwise.latent_shape)
    plans = [PrecisionPlan.uniform("fp32", options.steps)]
    plans += [
        PrecisionPlan.single("fp32", "w4a4", step, options.steps) for step in range(options.steps)
    ]
    conditioning = stepwise.encode(texts)

    def call(plan: PrecisionPlan) -> torch.Tensor:
        """One pipeline call, its transformer exchanged between steps."""

        def exchange(pipe: Any, step: int, _: object, tensors: dict[str, object]) -> object:
            pipe.transformer = bank[plan[min(step + 1, len(plan) - 1)]]
            return tensors

        pipe.transformer = bank[plan[0]]
        try:
            latents: torch.Tensor = pipe(
                texts,
                latents=noise.clone(),
                num_inference_steps=options.steps,
                guidance_scale=4.0,
                max_sequence_length=24,
                output_type="latent",
                callback_on_step_end=exchange,
            ).images
        finally:
            pipe.transformer = stepwise.denoiser
        return latents

    call(plans[-1])
    started = time.perf_counter()
    loop = torch.stack([call(plan) for plan in plans])
    looped = time.perf_counter() - started
    started = time.perf_counter()
    tree = evaluate(stepwise, bank, conditioning, noise, plans)
    treed = time.perf_counter() - started
    nodes = len(PrefixTree.of(plans))
    difference = (tree - loop).abs().max() / loop.abs().max()
    print(f"{len(plans)} plans of {options.steps} steps, {options.samples} samples")
    print(f"one call per plan: {looped:.2f} s; prefix tree: {treed:.2f} s")
    fewer = len(plans) * options.steps / nodes
    print(f"speedup {looped / treed:.2f}x; network evaluations {fewer:.2f}x fewer")
    print(f"largest relative difference {float(difference):.1e}")


if __name__ == "__main__":
    main()
