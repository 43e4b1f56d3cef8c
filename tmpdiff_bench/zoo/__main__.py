"""`python -m tmpdiff_bench.zoo`: train the embedded models and rebuild what ships in `data/`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tmpdiff_bench.commands import ArgumentParser, positive_int, run, seed

DESCRIPTION = "Train the embedded models, and rebuild the models and prompts that ship in data/."
EXAMPLES = """\
examples, in the order that rebuilds everything:
  python -m tmpdiff_bench.zoo prompts
  python -m tmpdiff_bench.zoo train --model vae
  python -m tmpdiff_bench.zoo train --model recogniser
  python -m tmpdiff_bench.zoo train --model sd3
  python -m tmpdiff_bench.zoo export --model recogniser
  python -m tmpdiff_bench.zoo export --model sd3
  python -m tmpdiff_bench.zoo train --model t5
  python -m tmpdiff_bench.zoo train --model pixart
  python -m tmpdiff_bench.zoo export --model pixart
and so flux and sdxl.

Training goes on where it was stopped; --iterations above what is done prolongs a run.
Export measures the trained model, and writes weights, model card and pictures.
"""
_EXPORTED = ("recogniser", "sd3", "pixart", "flux", "sdxl")
_PARTS = ("vae", "t5", *_EXPORTED)


def main(argv: Sequence[str]) -> None:
    """Run one of `train`, `export`, `prompts`."""
    options = _parser().parse_args(argv)
    from tmpdiff_bench.zoo import build, export, prompts
    from tmpdiff_bench.zoo.manifest import write_manifest

    if options.command == "train":
        build.train_part(
            options.model,
            options.runs,
            iterations=options.iterations,
            seed=options.seed,
            start_from=options.start_from,
        )
        return
    if options.command == "prompts":
        for path in prompts.write_prompts(options.data / "prompts"):
            print(f"wrote {path}")
    else:
        models = options.data / "models"
        if options.model == "recogniser":
            figures = export.export_recogniser(options.runs, models)
        else:
            figures = export.export_model(options.model, options.runs, models)
        for name, value in figures.items():
            print(f"{name}: {value}")
    print(f"wrote {write_manifest(options.data)}")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m tmpdiff_bench.zoo",
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser("train", help="train a part, or go on with it")
    train.add_argument("--model", choices=_PARTS, required=True, help="the part to train")
    train.add_argument("--iterations", type=positive_int, help="in all (default: the part's own)")
    train.add_argument("--seed", type=seed, default=0, help="seed of the run (default: 0)")
    train.add_argument(
        "--start-from",
        type=Path,
        metavar="PATH",
        help="pipeline folder whose transformer a new sd3 starts with",
    )
    export = commands.add_parser("export", help="measure a trained part and write it into data/")
    export.add_argument("--model", choices=_EXPORTED, required=True, help="the part to export")
    prompts = commands.add_parser("prompts", help="write the prompt sets into data/")
    for command in (train, export):
        command.add_argument(
            "--runs",
            type=Path,
            default=Path("training"),
            metavar="PATH",
            help="folder of the training runs (default: training)",
        )
    for command in (export, prompts):
        command.add_argument(
            "--data",
            type=Path,
            default=Path("data"),
            metavar="PATH",
            help="the data folder of a checkout (default: data)",
        )
    return parser


if __name__ == "__main__":
    run(main)
