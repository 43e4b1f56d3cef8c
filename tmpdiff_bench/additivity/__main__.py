"""`python -m tmpdiff_bench.additivity`: record a model, test additivity, write a report."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tmpdiff_bench.commands import ArgumentParser, finite_float, run
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.options import add_options, experiment, given

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
  python -m tmpdiff_bench.additivity --weights FOLDER --call guidance_scale=3.5 --dtype bf16
      any diffusers pipeline, with an argument of its call
  python -m tmpdiff_bench.additivity --model all
      every embedded model, with a joint table; the page is additivity-all/report.html
  python -m tmpdiff_bench.additivity --model sd3 --metrics lpips-scenes,one_minus_ssim,psnr
      other metrics, measured for every run
  python -m tmpdiff_bench.additivity --recording additivity-sd3/recording --margin 0.2 --out wider
      another analysis of the same runs, without the model
  python -m tmpdiff_bench.additivity --recording additivity-sd3 additivity-flux --out both
      recordings of several models together

Interrupted, the same command goes on where it was; repeated, it reuses its recording.
"""


def main(argv: Sequence[str]) -> None:
    """Check the arguments, then record or open, analyse, and write the report."""
    options = _read(argv)
    if options.recording is None and options.experiment.model == ALL:
        from tmpdiff_bench.additivity.experiment import every_model

        print(every_model(options.experiment, options.out, margin=options.margin))
        return
    # below the check of the arguments, because these imports take seconds
    from tmpdiff_bench.additivity.report import check_folder, summary_text, write_report

    if options.recording is None:
        check_folder(options.out)
        from tmpdiff_bench.trajectory import record

        recording = record(options.experiment, options.out / "recording")
    else:
        from tmpdiff_bench.additivity.experiment import find_recordings, several_recordings
        from tmpdiff_bench.trajectory import Recording

        found = find_recordings(options.recording)
        if len(found) > 1:
            chosen = {"metrics": options.chosen_metrics, "margin": options.margin}
            print(several_recordings(found, options.out, **chosen))
            return
        check_folder(options.out)
        recording = Recording.open(found[0])
    from tmpdiff_bench.additivity.analysis import analyse

    report = analyse(recording, metrics=options.chosen_metrics, margin=options.margin)
    print(summary_text(report, write_report(report, options.out)))


def _margin(text: str) -> float:
    if (margin := finite_float(text)) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0, as 0.1 (10 %) is")
    return margin


ALL = "all"
_NOT_OURS = ("capture", "plans")  # the analysis has its own design, and needs terminal latents


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m tmpdiff_bench.additivity",
        usage="%(prog)s (--model NAME | --weights WEIGHTS | --recording PATH) [options]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    many = {"type": Path, "nargs": "+", "action": "extend"}
    parser.option(
        "--recording", "analyse existing recordings, or those of reports, instead", **many
    )
    parser.option("--out", "folder of the report (default: additivity-MODEL)", type=Path)
    parser.option(
        "--margin", "relative error that still counts as additive", type=_margin, default=0.10
    )
    add_options(parser, without=_NOT_OURS)
    return parser


def _read(argv: Sequence[str]) -> argparse.Namespace:
    """The options, and the `experiment` to record. Raises `UsageError` for those that exclude each
    other.
    """
    options = _parser().parse_args(argv)
    named = [name for name in given(options) if name != "--metrics"]
    if options.recording and named:
        raise UsageError(f"{named[0]} has no effect with --recording: leave one of them out")
    # of an existing recording, which to analyse beside the one that reports are built on; of a new
    # one all errors that it will hold are
    chosen = getattr(options, "metrics", None) if options.recording else None
    options.chosen_metrics = chosen and tuple(dict.fromkeys(("latent_rmse", *chosen)))
    if options.recording:
        recordings = options.recording
        name = recordings[0].resolve().name if len(recordings) == 1 else "joint"
    else:
        options.experiment = asked = experiment(options)
        if asked.model == ALL and (
            extra := {"--weights", "--revision", "--variant", "--level"} & {*named}
        ):
            raise UsageError(f"{min(extra)} is of one model: it has no meaning with --model {ALL}")
        if asked.steps < 2 or not asked.joint_plans:
            raise UsageError("--steps and --joint-plans leave nothing to add up: 2 and 1 at least")
        name = asked.model or Path(asked.weights).stem or "mine"
    options.out = options.out or Path(f"additivity-{name}")
    return options


if __name__ == "__main__":
    run(main)
