"""The options that say what is recorded, shared by the commands that record."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tmpdiff_bench.commands import finite_float, positive_int, seed
from tmpdiff_bench.errors import UsageError


def levels(text: str) -> tuple[str, ...]:
    """The argument type of `--levels`."""
    names = tuple(name.strip() for name in text.split(","))
    if len(names) < 2 or not all(names):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not the reference and at least one low level, such as fp32,w4a4"
        )
    return names


def names(text: str) -> tuple[str, ...]:
    """The argument type of `--metrics`."""
    found = tuple(name.strip() for name in text.split(","))
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of names, such as psnr,ssim")
    return found


# Literal, as the sets themselves import pandas, for which --help would wait.
PROMPT_SET = (
    "scenes, scenes-attributes, scenes-relations, scenes-counts, mjhq, sdci, coco, partiprompts "
    "or drawbench, the last five from the hub or its cache (default: scenes, the three in turn)"
)
Option = tuple[Callable[[str], Any], Any, str]
EXPERIMENT: dict[str, Option] = {
    "--weights": (str, "embedded", "'embedded', a folder that diffusers saved, or a hub id"),
    "--revision": (str, None, "branch, tag or commit of a hub id"),
    "--levels": (levels, ("fp32", "w8a8", "w4a8", "w4a4"), "the reference and the low levels"),
    "--reference": (str, None, "which of the levels is the reference (default: the first)"),
    "--steps": (positive_int, 20, "denoising steps"),
    "--prompts": (Path, None, "your own prompts: .txt (one a line), .csv or .parquet"),
    "--prompt-set": (str, None, PROMPT_SET),
    "--num-prompts": (positive_int, None, "prompts (default: 16, or all of --prompts)"),
    "--num-seeds": (positive_int, 2, "noise seeds of each prompt"),
    "--guidance": (finite_float, 4.0, "classifier-free guidance scale"),
    "--seed": (seed, 0, "first noise seed, also that of the choice of joint plans"),
    "--metrics": (
        names,
        ("latent_rmse", "latent_mse", "image_rmse", "one_minus_ssim"),
        "measured for every run, such as lpips-scenes,psnr,scene_objects; the latent two always",
    ),
    "--device": (str, "cpu", "where the model runs, such as cpu or cuda"),
    "--dtype": (str, "fp32", "of weights and arithmetic: fp32, bf16 or fp16"),
    "--vae-tile": (positive_int, None, "decode images in tiles of so many pixels a side"),
    "--max-batch": (positive_int, 16, "samples in one pass of the network, at most"),
    "--residency": (
        str,
        "resident",
        "weights of levels not in use: resident in memory, offload (to the CPU, or to files), or "
        "derive (rounded again at every switch)",
    ),
    "--state-memory": (positive_int, 1024, "MiB of intermediate latents held, at most"),
}


def add_options(parser: argparse.ArgumentParser, options: dict[str, Option]) -> None:
    """Add options; those not given leave no attribute, so that they can be told from defaults."""
    group = parser.add_argument_group("experiment (with --model)")
    for option, (kind, default, text) in options.items():
        shown = ",".join(default) if isinstance(default, tuple) else default
        text = text if default is None else f"{text} (default: {shown})"
        name = option.rpartition("-")[2].upper()
        group.add_argument(option, type=kind, metavar=name, default=argparse.SUPPRESS, help=text)


def given(parsed: argparse.Namespace, options: dict[str, Option]) -> list[str]:
    """The options that the command line names."""
    return [option for option in options if hasattr(parsed, _attribute(option))]


def settings(parsed: argparse.Namespace, options: dict[str, Option]) -> dict[str, Any]:
    """The values of all options as arguments of `record_model`, the reference first in `levels`;
    where no levels are given, it is the dtype.

    Raises:
        UsageError: the reference is not among the levels.
    """
    found: dict[str, Any] = {
        _attribute(option): getattr(parsed, _attribute(option), default)
        for option, (_, default, _) in options.items()
    }
    reference = found.pop("reference")
    if not hasattr(parsed, "levels"):
        found["levels"] = (found["dtype"], *found["levels"][1:])
    if reference is not None:
        if reference not in found["levels"]:
            raise UsageError(
                f"the reference {reference!r} is not among the levels "
                f"{', '.join(found['levels'])}: add it to --levels"
            )
        low = (level for level in found["levels"] if level != reference)
        found["levels"] = (reference, *low)
    found["state_memory"] *= 2**20
    return found


def _attribute(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")
