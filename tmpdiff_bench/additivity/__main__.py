"""`python -m tmpdiff_bench.additivity`: record a model, test additivity, write a report."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tmpdiff_bench.commands import ArgumentParser, finite_float, positive_int, run
from tmpdiff_bench.errors import UsageError

if TYPE_CHECKING:
    from tmpdiff_bench.trajectory import Recording

DESCRIPTION = """\
Do quantization errors of single denoising steps add up? Runs a diffusion model with every step
alone, and with many steps together, at low precision; tests how well the first predict the
second; writes a report.
"""
EXAMPLES = """\
examples:
  python -m tmpdiff_bench.additivity --model sd3
      the default experiment; its report is additivity-sd3/report.html
  python -m tmpdiff_bench.additivity --model sd3 --levels fp32,w4a4 --steps 8 --out small
      a small one
  python -m tmpdiff_bench.additivity --recording additivity-sd3/recording --margin 0.2 --out wider
      another analysis of the same runs, without the model

Interrupted, the same command goes on where it was; repeated, it reuses its recording.
"""


def main(argv: Sequence[str]) -> None:
    """Check the arguments, then record or open, analyse, and write the report."""
    options = _read(argv)
    out = options.out or Path(f"additivity-{options.model or options.recording.resolve().name}")
    # below the check of the arguments, because these imports take seconds
    from tmpdiff_bench.additivity.report import check_folder, summary_text, write_report

    check_folder(out)
    from tmpdiff_bench.additivity.analysis import analyse

    recording = _recording(options, out)
    report = analyse(recording, margin=options.margin)
    page = write_report(report, recording, out)
    print(summary_text(report, page))


def _recording(options: argparse.Namespace, out: Path) -> Recording:
    if options.recording:
        from tmpdiff_bench.trajectory import Recording

        return Recording.open(options.recording)
    from tmpdiff_bench.additivity.experiment import record_model

    return record_model(
        options.model,
        weights=options.weights,
        levels=options.levels,
        steps=options.steps,
        num_prompts=options.num_prompts,
        num_seeds=options.num_seeds,
        guidance=options.guidance,
        seed=options.seed,
        device=options.device,
        joint_plans=options.joint_plans,
        max_batch=options.max_batch,
        folder=out / "recording",
    )


def _levels(text: str) -> tuple[str, ...]:
    levels = tuple(name.strip() for name in text.split(","))
    if len(levels) < 2 or not all(levels):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not the reference and at least one low level, such as fp32,w4a4"
        )
    return levels


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def _margin(text: str) -> float:
    if (margin := finite_float(text)) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0, as 0.1 (10 %) is")
    return margin


# what a recording has settled; an option that would have no effect on one is an error
_EXPERIMENT: dict[str, tuple[Callable[[str], Any], Any, str]] = {
    "--weights": (str, "embedded", "'embedded', or a folder that diffusers saved"),
    "--levels": (_levels, ("fp32", "w8a8", "w4a8", "w4a4"), "the reference and the low levels"),
    "--reference": (str, None, "which of the levels is the reference (default: the first)"),
    "--steps": (positive_int, 20, "denoising steps"),
    "--num-prompts": (positive_int, 16, "prompts"),
    "--num-seeds": (positive_int, 2, "noise seeds of each prompt"),
    "--guidance": (finite_float, 4.0, "classifier-free guidance scale"),
    "--seed": (_seed, 0, "first noise seed, also that of the choice of joint plans"),
    "--device": (str, "cpu", "where the model runs, such as cpu or cuda"),
    "--joint-plans": (positive_int, 12, "joint plans of each low level"),
    "--max-batch": (positive_int, 32, "samples in one pass of the network, at most"),
}


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m tmpdiff_bench.additivity",
        usage="%(prog)s (--model NAME | --recording PATH) [options]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", metavar="NAME", help="record this model: sd3")
    source.add_argument(
        "--recording", type=Path, metavar="PATH", help="analyse an existing recording instead"
    )
    parser.add_argument(
        "--out", type=Path, metavar="PATH", help="folder of the report (default: additivity-MODEL)"
    )
    parser.add_argument(
        "--margin",
        type=_margin,
        default=0.10,
        help="relative error that still counts as additive (default: %(default)s)",
    )
    experiment = parser.add_argument_group("experiment (with --model)")
    for option, (kind, default, text) in _EXPERIMENT.items():
        shown = ",".join(default) if isinstance(default, tuple) else default
        text = text if default is None else f"{text} (default: {shown})"
        name = option.rpartition("-")[2].upper()
        experiment.add_argument(
            option, type=kind, metavar=name, default=argparse.SUPPRESS, help=text
        )
    return parser


def _read(argv: Sequence[str]) -> argparse.Namespace:
    """The options with their defaults. Raises `UsageError` for those that exclude each other."""
    options = _parser().parse_args(argv)
    for option, (_, default, _) in _EXPERIMENT.items():
        name = option.removeprefix("--").replace("-", "_")
        if options.recording and hasattr(options, name):
            raise UsageError(f"{option} has no effect with --recording: leave one of them out")
        setattr(options, name, getattr(options, name, default))
    if options.steps < 2:
        raise UsageError("--steps 1 leaves nothing to add up: at least 2 are needed")
    if options.reference is not None:
        if options.reference not in options.levels:
            raise UsageError(
                f"the reference {options.reference!r} is not among the levels "
                f"{', '.join(options.levels)}: add it to --levels"
            )
        low = (level for level in options.levels if level != options.reference)
        options.levels = (options.reference, *low)
    return options


if __name__ == "__main__":
    run(main)
