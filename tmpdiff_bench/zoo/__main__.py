"""`python -m tmpdiff_bench.zoo`: train the embedded models and rebuild what ships in `data/`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tmpdiff_bench.commands import ArgumentParser, positive_int, run, seed

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
    about = "Train the embedded models, and rebuild the models and prompts that ship in data/."
    parser = ArgumentParser(prog="python -m tmpdiff_bench.zoo", description=about, epilog=EXAMPLES)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser("train", help="train a part, or go on with it")
    train.option("--model", "the part to train", choices=_PARTS, required=True, metavar=None)
    train.option("--iterations", "in all (default: the part's own)", type=positive_int)
    train.option("--seed", "seed of the run", type=seed, default=0)
    started = "pipeline folder whose transformer a new sd3 starts with"
    train.option("--start-from", started, type=Path)
    export = commands.add_parser("export", help="measure a trained part and write it into data/")
    export.option("--model", "the part to export", choices=_EXPORTED, required=True, metavar=None)
    prompts = commands.add_parser("prompts", help="write the prompt sets into data/")
    for command in (train, export):
        runs = "folder of the training runs"
        command.option("--runs", runs, type=Path, default=Path("training"))
    for command in (export, prompts):
        command.option("--data", "the data folder of a checkout", type=Path, default=Path("data"))
    return parser


if __name__ == "__main__":
    run(main)
