"""`python -m tmpdiff_bench.additivity`: record a model, test additivity, write a report."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tmpdiff_bench.commands import ArgumentParser, finite_float, positive_int, run
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.trajectory.options import EXPERIMENT, add_options, given, settings

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
    from tmpdiff_bench.additivity.experiment import record_design

    return record_design(options.model, folder=out / "recording", **options.settings)


def _margin(text: str) -> float:
    if (margin := finite_float(text)) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0, as 0.1 (10 %) is")
    return margin


# what a recording has settled; an option that would have no effect on one is an error
_EXPERIMENT = {**EXPERIMENT, "--joint-plans": (positive_int, 12, "joint plans of each low level")}


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
    source.add_argument(
        "--model", metavar="NAME", help="record this model: sd3, flux, pixart or sdxl"
    )
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
    add_options(parser, _EXPERIMENT)
    return parser


def _read(argv: Sequence[str]) -> argparse.Namespace:
    """The options, and `settings` of a recording to make. Raises `UsageError` for those that
    exclude each other.
    """
    options = _parser().parse_args(argv)
    if options.recording and (named := given(options, _EXPERIMENT)):
        raise UsageError(f"{named[0]} has no effect with --recording: leave one of them out")
    options.settings = settings(options, _EXPERIMENT)
    if options.settings["steps"] < 2:
        raise UsageError("--steps 1 leaves nothing to add up: at least 2 are needed")
    return options


if __name__ == "__main__":
    run(main)
