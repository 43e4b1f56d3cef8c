"""`python -m tmpdiff_bench.deploy`: find a plan, look at what it does, hand it to an engine."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tmpdiff_bench.commands import ArgumentParser, finite_float, positive_int, run
from tmpdiff_bench.deploy.formats import FORMATS, StepPolicy, export, from_comma
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.files import read_text
from tmpdiff_bench.options import add_options, experiment, given, levels, values
from tmpdiff_bench.plan import PrecisionPlan

DESCRIPTION = """\
Finds which denoising steps can run at low precision for a speedup, runs such a plan in a diffusers
pipeline beside the reference, and writes it as inference engines read it.
"""
EXAMPLES = """\
examples:
  python -m tmpdiff_bench.deploy allocate --model sd3 --speedup 2 --allocator gram --out plan.json
      records the errors of single steps into plan-recording, then takes the best plan
  python -m tmpdiff_bench.deploy apply plan.json --prompt "a red circle" --out image.png
      the reference's image and the plan's, side by side; SSIM and times (of sd3)
  python -m tmpdiff_bench.deploy apply plan.json --weights FOLDER --call height=512 \\
      --prompt "a red circle" --out image.png
  python -m tmpdiff_bench.deploy export plan.json --format comma
  python -m tmpdiff_bench.deploy export plan.json --format diffusion-step-policy \\
      --recording plan-recording
      where the plan is not "first n, last m steps high", the best one that is, and its loss
  python -m tmpdiff_bench.deploy import config.json --steps 20 --levels fp32,w8a8 --out plan.json
"""
_LOADING = (
    *("model", "weights", "revision", "variant", "device", "dtype", "scheduler", "lora"),
    "vae_tile",
)
_NOT_LOADING = (
    *("levels", "steps", "prompts", "prompt_set", "num_prompts", "num_seeds", "quantized"),
    *("metrics", "max_batch", "residency", "state_memory", "capture", "plans"),
)


def main(argv: Sequence[str]) -> None:
    """Run one of `allocate`, `apply`, `export`, `import`."""
    options = _parser().parse_args(argv)
    {"allocate": _allocate, "apply": _apply, "export": _export, "import": _import}[options.command](
        options
    )


def _allocate(options: argparse.Namespace) -> None:
    from tmpdiff_bench.allocators import get_allocator
    from tmpdiff_bench.deploy.choice import allocate
    from tmpdiff_bench.trajectory import Recording

    get_allocator(options.allocator)  # an unknown one is told before the work
    _writable(options.out)
    folder = options.recording
    if folder is None:
        folder = options.out.with_name(f"{options.out.stem}-recording")
        asked = experiment(options)
        from tmpdiff_bench.trajectory import record

        record(asked, folder)
    elif named := given(options):
        raise UsageError(f"{named[0]} has no effect with --recording: leave one of them out")
    choice = allocate(
        Recording.open(folder),
        speedup=options.speedup,
        costs=options.costs,
        allocator=options.allocator,
    )
    options.out.write_text(export(choice.plan, "json"), encoding="utf-8")
    print(f"{choice}\n{options.out} (recording: {folder})")


def _apply(options: argparse.Namespace) -> None:
    plan = _read_plan(options.plan)
    _writable(options.out)
    _is_picture(options.out)
    if options.prompt.strip() == "":
        raise UsageError("--prompt is empty")
    from tmpdiff_bench.deploy.comparison import compare
    from tmpdiff_bench.pipelines import load_pipeline

    asked = values(options)
    if not {"model", "weights"} & asked.keys():
        asked["model"] = "sd3"
    modules = asked.get("modules", {})
    if idle := next((name for name in modules if name not in {options.reference, *plan}), None):
        raise UsageError(
            f"--level {idle}=... has no effect: neither the plan nor --reference is it"
        )
    loaded = load_pipeline(**{name: asked[name] for name in _LOADING if name in asked})
    found = compare(
        loaded,
        plan,
        options.prompt,
        call=asked.get("call"),
        seed=asked.get("seed", 0),
        repeats=options.repeats,
        reference=options.reference,
        modules=modules,
    )
    found.picture.save(options.out)
    print(f"{loaded.title}: {plan}\n{found}\n{options.out}: {options.reference} left, plan right")


def _export(options: argparse.Namespace) -> None:
    plan = _read_plan(options.plan)
    high = options.reference
    if options.format == "diffusion-step-policy":
        try:
            StepPolicy.of(plan, high=high)
        except UsageError as error:
            if options.recording is None:
                raise UsageError(
                    f"{error}; name a recording of the model by --recording, and the best plan "
                    "that a policy can say is taken"
                ) from error
            plan = _projected(plan, high, options.recording, options.costs)
        low = sorted(set(plan) - {high})
        print(f"a16 is {high}, native is {' '.join(low) or 'not used'}", file=sys.stderr)
    elif options.recording is not None:
        raise UsageError(f"--recording has no effect with --format {options.format}: leave it out")
    text = export(plan, options.format, high=high)
    if options.out is None:
        sys.stdout.write(text)
    else:
        _writable(options.out)
        options.out.write_text(text, encoding="utf-8")


def _projected(plan: PrecisionPlan, high: str, folder: Path, costs: str) -> PrecisionPlan:
    from tmpdiff_bench.deploy.choice import problem_of, words_of
    from tmpdiff_bench.deploy.formats import project
    from tmpdiff_bench.trajectory import Recording

    problem = problem_of(Recording.open(folder), costs, speedup=1.0)
    if problem.levels[0] != high:
        raise UsageError(f"the recording's reference is {problem.levels[0]}, --reference is {high}")
    found = project(plan, problem)
    print(f"{found}\nthe speedup is by {words_of(costs)}", file=sys.stderr)
    return found.plan


def _import(options: argparse.Namespace) -> None:
    text = read_text(options.file)
    if text.lstrip().startswith("{"):
        if options.steps is None or options.levels is None:
            raise UsageError("a policy names neither steps nor levels: give --steps and --levels")
        if len(options.levels) != 2:
            raise UsageError(
                "--levels are a policy's high level and its low one, such as fp32,w8a8"
            )
        high, low = options.levels
        plan = StepPolicy.from_json(text).plan(options.steps, high=high, low=low)
    elif options.steps is not None or options.levels is not None:
        raise UsageError("--steps and --levels have no effect on a comma list: leave them out")
    else:
        plan = from_comma(text.strip())
    if options.out is None:
        sys.stdout.write(export(plan, "json"))
    else:
        _writable(options.out)
        options.out.write_text(export(plan, "json"), encoding="utf-8")
        print(f"{options.out}: {plan}")


def _read_plan(path: Path) -> PrecisionPlan:
    text = read_text(path)
    try:
        return PrecisionPlan.from_json(text)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _writable(path: Path) -> None:
    """Raise `UsageError` now where a file can't be written later, after the work."""
    try:
        if path.is_dir() or (path.exists() and not os.access(path, os.W_OK)):
            raise UsageError(f"--out {path} is no file that can be written")
        if not path.exists():
            with tempfile.TemporaryFile(dir=path.absolute().parent):
                pass
    except OSError as error:
        raise UsageError(f"--out {path} can't be written: {error.strerror}") from error


def _is_picture(path: Path) -> None:
    from PIL import Image

    format = Image.registered_extensions().get(path.suffix.lower())
    if format not in Image.SAVE:
        raise UsageError(f"--out {path} has no ending of a picture, such as .png")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m tmpdiff_bench.deploy", description=DESCRIPTION, epilog=EXAMPLES
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    table = "a cost table's name or file (default: in proportion to bits, an assumption)"
    allocate = commands.add_parser("allocate", help="find a plan for a speedup")
    allocate.option("--recording", "a recording to use instead", type=Path)
    allocate.option("--speedup", "how many times", type=finite_float, required=True, metavar="X")
    allocate.option("--allocator", "which chooses", default="gram", metavar="NAME")
    allocate.add_argument("--costs", default="bits", metavar="TABLE", help=table)
    allocate.option("--out", "file of the plan", type=Path, required=True)
    add_options(
        allocate,
        without=("capture", "plans"),
        levels=("fp32", "w8a8", "w4a4"),
        num_prompts=8,
        num_seeds=1,
        joint_plans=0,
    )
    apply = commands.add_parser("apply", help="make an image with a plan and without it")
    apply.add_argument("plan", type=Path, metavar="PLAN")
    apply.option("--prompt", "what to draw", required=True, metavar="TEXT")
    apply.option("--out", "the picture", type=Path, required=True)
    apply.option("--repeats", "timed images of each", type=positive_int, default=3)
    add_options(apply, without=_NOT_LOADING)
    ex = commands.add_parser("export", help="write a plan as engines read it")
    ex.add_argument("plan", type=Path, metavar="PLAN")
    ex.option("--format", "of what is written", required=True, choices=FORMATS, metavar=None)
    ex.option("--recording", "what to project by", type=Path)
    ex.add_argument("--costs", default="bits", metavar="TABLE", help=table)
    for command in (apply, ex):
        command.option("--reference", "the high level", default="fp32", metavar="LEVEL")
    back = commands.add_parser("import", help="read a policy or a comma list as a plan")
    back.add_argument("file", type=Path, metavar="FILE")
    back.option("--steps", "of the plan", type=positive_int, metavar="S")
    back.option("--levels", "of the plan", type=levels, metavar="HIGH,LOW")
    for command in (ex, back):
        command.option("--out", "file (default: standard output)", type=Path)
    return parser


if __name__ == "__main__":
    run(main)
