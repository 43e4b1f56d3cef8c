"""Table: signal-to-quantization-noise ratio in dB of every format, by layer of the embedded sd3.

Weights, and inputs of the layers in a run of the reference, are rounded as the simulated levels
round them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from analysis.base import Made, Reports, Script, TableFile, Tolerance
from tmpdiff_bench.commands import run
from tmpdiff_bench.levels import FORMATS, quantize_dequantize
from tmpdiff_bench.noise import generator_seed
from tmpdiff_bench.pipelines import LoadedModel, load_pipeline, quantized_layers
from tmpdiff_bench.pipelines.calls import Call
from tmpdiff_bench.report.tables import Table
from tmpdiff_bench.zoo.prompts import mixed_prompts

STEPS = 20
FORMS = [form for form in FORMATS if form != "fp32"]
DECIBELS = Tolerance(0, 0.05, "the reference is not chaotic: sums over many values of one rounding")


def rounded_weight(weight: Tensor, form: str) -> Tensor:
    """A weight (out, in) as levels round it."""
    group = 64 if form == "int4" else None
    return quantize_dequantize(weight, form, group=group, whole=form == "nvfp4")


class Ratio:
    """Signal and noise of one layer's inputs, summed over calls, for each format."""

    def __init__(self) -> None:
        self.signal = 0.0
        self.noise = dict.fromkeys(FORMS, 0.0)

    def add(
        self, x: Tensor, rounding: Callable[[Tensor, str], Tensor] = quantize_dequantize
    ) -> None:
        """Count `x` (..., features)."""
        self.signal += float(x.double().square().sum())
        for form in FORMS:
            self.noise[form] += float((rounding(x, form) - x).double().square().sum())

    def decibels(self) -> dict[str, float]:
        """10 log10 (signal / noise) of each format."""
        noise = torch.tensor(list(self.noise.values()), dtype=torch.float64)
        return dict(zip(FORMS, (10 * torch.log10(self.signal / noise)).tolist(), strict=True))


def ratios(loaded: LoadedModel, texts: Sequence[str]) -> pd.DataFrame:
    """Rows by layer and what is rounded; a column per format."""
    denoiser = loaded.pipeline.transformer
    layers = {name: denoiser.get_submodule(name) for name in quantized_layers(denoiser)}
    inputs = {name: Ratio() for name in layers}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, given: inputs[name].add(given[0])

    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    seeds = [generator_seed(text, 0) for text in texts]
    call = Call({**loaded.defaults, "num_inference_steps": STEPS}, {"prompt": texts}, seeds)
    with tqdm(total=STEPS, desc="steps") as bar:

        def advance(pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
            bar.update()
            return given

        loaded.pipeline(**call.arguments(), callback_on_step_end=advance)
    for hook in hooks:
        hook.remove()
    rows = []
    for name, layer in layers.items():
        weights = Ratio()
        weight = layer.weight.detach()
        weights.add(weight.flatten(1), rounded_weight)
        for what, ratio in (("weight", weights), ("input", inputs[name])):
            rows.append({"layer": name, "rounded": what, **ratio.decibels()})
    return pd.DataFrame(rows)


def by_kind(layers: pd.DataFrame) -> pd.DataFrame:
    """Formats by kind of layer: medians over blocks, to a tenth of a dB."""
    kinds = layers["layer"].map(lambda name: re.sub(r"^\D*\d+\.", "", name))
    median = layers.assign(kind=kinds).groupby(["rounded", "kind"], sort=False)[FORMS].median()
    table = median.sort_index(level="rounded", sort_remaining=False, ascending=False)
    return table.reset_index()


def make(reports: Reports) -> Iterator[Made]:
    """The table: all layers in csv, medians by kind of layer for readers."""
    samples = 2 if reports.quick else 8
    layers = ratios(load_pipeline("sd3"), list(mixed_prompts(samples, "calibration")["text"]))
    shown = by_kind(layers).map(lambda v: f"{v:.1f}" if isinstance(v, float) else v)
    yield Table(
        "levels",
        "Signal over rounding noise in dB",
        layers.round(3),
        shown,
        "Formats by kind of layer, medians over the blocks of the embedded sd3; inputs of "
        f"{samples} samples at all {STEPS} steps of the reference. The csv has every layer.",
    )


SCRIPT = Script(
    "levels",
    make,
    inputs=("data/models/sd3/model_index.json",),
    outputs=(TableFile("levels", ("layer", "rounded"), elsewhere=dict.fromkeys(FORMS, DECIBELS)),),
)

if __name__ == "__main__":
    run(SCRIPT.main)
