"""`python -m tmpdiff_bench.costs`: measure what levels cost, or bound it for other hardware."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tmpdiff_bench.commands import ArgumentParser, names, out_folder, positive_int, run, seed
from tmpdiff_bench.costs.hardware import hardware_names, load_hardware
from tmpdiff_bench.costs.isolation import RANDOM, Subject
from tmpdiff_bench.costs.table import CostTable, load_costs
from tmpdiff_bench.errors import UsageError, check_known
from tmpdiff_bench.options import argument, by_name, own_level
from tmpdiff_bench.plan import PrecisionPlan

DESCRIPTION = """\
What one denoising step costs at each precision level: measured on this device with real kernels, or
as a roofline of the true-size model on hardware that you need not have.
"""
EXAMPLES = """\
examples:
  python -m tmpdiff_bench.costs roofline --model flux --hardware h200
  python -m tmpdiff_bench.costs roofline --model all --hardware all
      rebuilds every roofline table that ships in data/costs
  python -m tmpdiff_bench.costs measure --model sd3 --levels fp32,native:bf16,native:w8a8
  python -m tmpdiff_bench.costs measure --model sd3 --levels fp32,native:w8a8 --steps 20 \\
      --plan "fp32*5 native:w8a8*15"
      and checks what the table predicts for a plan against the whole plan's own time
  python -m tmpdiff_bench.costs measure --model flux --weights random --device cuda \\
      --levels native:bf16,native:fp8,native:w8a8 --steps 5
      the true-size denoiser with random weights: speed does not depend on them
  python -m tmpdiff_bench.costs compare PATH/measured-flux.json roofline-flux-h200-1024
"""
MODELS = ("sd3", "flux", "pixart", "sdxl")


def main(argv: Sequence[str]) -> None:
    """Run one of `roofline`, `measure`, `compare`."""
    options = _parser().parse_args(argv)
    if options.command == "roofline":
        _roofline(options)
    elif options.command == "measure":
        _measure(options)
    else:
        measured, roofline = load_costs(options.measured), load_costs(options.roofline)
        from tmpdiff_bench.costs.report import comparison_text

        print(comparison_text(measured, roofline))


def _roofline(options: argparse.Namespace) -> None:
    models = MODELS if "all" in options.model else options.model
    hardware = hardware_names() if "all" in options.hardware else options.hardware
    sheets = [load_hardware(name) for name in hardware]
    from tmpdiff_bench.costs.report import roofline_text
    from tmpdiff_bench.costs.roofline import DEFAULT_LEVELS, roofline_table

    levels = options.levels or DEFAULT_LEVELS
    tables = [
        roofline_table(model, sheet, resolution=options.resolution, levels=levels)
        for model in models
        for sheet in sheets
    ]
    for table in tables:
        print(roofline_text(table), end="\n\n")
    _save(tables, options.out)


def _measure(options: argparse.Namespace) -> None:
    check_known("model", options.model, MODELS)
    random = options.weights == RANDOM
    for option in ("call", "revision", "level") if random else ("resolution",):
        if getattr(options, option):
            effect = "no effect" if random else "an effect only"
            raise UsageError(f"--{option} has {effect} with --weights {RANDOM}")
    plans = [PrecisionPlan.parse(text) for text in options.plan]
    from tmpdiff_bench.costs.measure import measure
    from tmpdiff_bench.costs.report import checks_text, measured_text

    modules = {name: str(path) for name, path in by_name("--level", options.level).items()}
    same = ("model", "levels", "weights", "revision", "steps", "batch", "device")
    subject = Subject(
        **{name: getattr(options, name) for name in same},
        call=by_name("--call", options.call),
        modules=modules,
        resolution=options.resolution or 1024,
        compiled=options.compile,
    )
    found = measure(subject, repeats=options.repeats, plans=plans, seed=options.seed)
    print(measured_text(found))
    if found.checks:
        print("\n" + checks_text(found.checks))
    print()
    _save([found.table], options.out)


def _save(tables: Sequence[CostTable], folder: Path) -> None:
    """Write tables; where the folder is a checkout's data/costs, the manifest as well."""
    from tmpdiff_bench.zoo.manifest import NAME, write_manifest

    paths = [table.save(folder) for table in tables]
    if folder.name == "costs" and (folder.parent / NAME).exists():
        paths.append(write_manifest(folder.parent))
    for path in paths:
        print(f"wrote {path}")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m tmpdiff_bench.costs", description=DESCRIPTION, epilog=EXAMPLES
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    roofline = commands.add_parser("roofline", help="bound the cost from layer shapes")
    some = {"type": names, "required": True, "metavar": "NAMES"}
    roofline.option("--model", f"{', '.join(MODELS)}, or all", **some)
    sheets = f"{', '.join(hardware_names())}, a sheet of your own (PATH.toml), or all"
    roofline.option("--hardware", sheets, **some)
    pixels = {"type": positive_int, "metavar": "PIXELS"}
    roofline.option("--resolution", "side of the square image", default=1024, **pixels)
    beside = "levels beside bf16 (default: all)"
    roofline.option("--levels", beside, type=names, metavar="NAMES")
    measure = commands.add_parser("measure", help="time levels on this device")
    measure.option("--model", "the model, such as sd3", required=True, metavar="NAME")
    measure.option(
        "--levels", "the reference and others with real kernels: fp32,native:w8a8", **some
    )
    measure.option(
        "--weights",
        "'embedded', a folder that diffusers saved, a hub id, or 'random': a denoiser of true "
        "size, with a reference of native:bf16",
        default="embedded",
    )
    measure.option("--revision", "branch, tag or commit of a hub id")
    measure.option(
        "--call",
        "an argument of the pipeline's call, of a model with weights, such as guidance_scale=1 "
        "(default: those of embedded models, else the pipeline's own)",
        type=argument,
        repeated=True,
        metavar="NAME=VALUE",
    )
    measure.option(
        "--level",
        "a level of your own, of the pipeline's denoiser: a folder that diffusers saved, or a "
        ".gguf file; may be given many times",
        type=own_level,
        repeated=True,
        metavar="NAME=PATH",
    )
    side = "side of the square image, with --weights random (default: 1024)"
    measure.option("--resolution", side, **pixels)
    for name, kind, default, text in (
        ("--steps", positive_int, 20, "denoising steps of a plan"),
        ("--batch", positive_int, 1, "images at a time"),
        ("--repeats", positive_int, 15, "rounds in which everything is timed once, 6 or more"),
        ("--device", str, "cpu", "where the model runs, such as cpu or cuda"),
        ("--seed", seed, 0, "seed of the order within rounds"),
    ):
        measure.option(name, text, type=kind, default=default)
    measure.option("--compile", "run torch.compile's networks", action="store_true")
    checked = "a plan whose predicted speedup is checked; may be given many times"
    measure.option("--plan", checked, repeated=True)
    for command in (roofline, measure):
        command.option("--out", "folder of the tables", type=out_folder, default=Path("data/costs"))
    compare = commands.add_parser("compare", help="a roofline beside a measured table")
    for name in ("measured", "roofline"):
        compare.add_argument(name, metavar=name.upper(), help="a table's name or file")
    return parser


if __name__ == "__main__":
    run(main)
