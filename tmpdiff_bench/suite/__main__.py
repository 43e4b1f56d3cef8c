"""`python -m tmpdiff_bench.suite`: score allocators on fixed tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tmpdiff_bench.commands import ArgumentParser, run
from tmpdiff_bench.errors import UsageError, unknown
from tmpdiff_bench.suite.v1 import MODELS, PROFILES, VERSION

if TYPE_CHECKING:
    from tmpdiff_bench.suite.tasks import Task
    from tmpdiff_bench.suite.v1 import Profile

DESCRIPTION = """\
Score allocators of precision on the fixed tasks of the suite: which denoising step shall run at
which precision, for a target speedup? Every allocator sees calibration prompts only, and is scored
on evaluation prompts.
"""
EXAMPLES = """\
examples:
  python -m tmpdiff_bench.suite
      all tasks and allocators; the results are in suite-v1
  python -m tmpdiff_bench.suite --quick --allocator my_package.my_module:my_allocator
      an allocator of your own beside ours, on the small profile
  python -m tmpdiff_bench.suite --list --models sd3
      the tasks, and how many network evaluations they take
  python -m tmpdiff_bench.suite --tasks 'sd3/*/S8'
      tasks by pattern

Interrupted, the same command goes on where it was; repeated, it reuses what is in its store.
"""


def main(argv: Sequence[str]) -> None:
    """Check the arguments, run, save, and print who did how well."""
    options = _parser().parse_args(argv)
    profile = PROFILES["quick" if options.quick else "full"]
    tasks = _chosen(profile, options.models, options.tasks)
    if options.list:
        from tmpdiff_bench.suite.printing import listing

        print(listing(profile, tasks))
        return
    for path in (options.out, options.store):
        if path is not None and path.exists() and not path.is_dir():
            raise UsageError(f"{path} is a file: name a folder")
    # below the check of the arguments, because these imports take seconds
    from tmpdiff_bench.suite.printing import as_json, summary
    from tmpdiff_bench.suite.rules import load_allocators
    from tmpdiff_bench.suite.runner import run_suite

    contributed = load_allocators(options.allocator)
    out: Path = options.out or Path(f"suite-v{VERSION}")
    store = options.store or out / "cells"
    results = run_suite(profile, store, tasks=tasks, contributed=contributed).save(out)
    print(as_json(results) if options.json else summary(results, out))


def _chosen(profile: Profile, models: str | None, patterns: Sequence[str]) -> list[Task]:
    """The tasks that the options name, in the suite's order.

    Raises `UsageError` for a model, or a pattern, that names none of the profile's.
    """
    from fnmatch import fnmatchcase

    names = profile.models if models is None else tuple(filter(None, models.split(",")))
    for name in names:
        if name not in profile.models:
            hint = " of the quick profile" if name in MODELS else ""
            raise unknown(f"model{hint}", name, profile.models)
    tasks = [task for task in profile.tasks() if task.model in names]
    for pattern in patterns:
        if not any(fnmatchcase(task.name, pattern) for task in tasks):
            raise unknown("task", pattern, [task.name for task in tasks[:6]])
    if patterns:
        tasks = [t for t in tasks if any(fnmatchcase(t.name, p) for p in patterns)]
    if not tasks:
        raise UsageError("no task is left: --models names none")
    return tasks


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m tmpdiff_bench.suite", description=DESCRIPTION, epilog=EXAMPLES
    )
    parser.option(
        "--allocator",
        "an allocator to score beside ours; it has to pass the contract check first; may be given "
        "many times",
        repeated=True,
        metavar="MODULE:FUNCTION",
    )
    parser.option("--quick", "the small profile: a few minutes on two cores", action="store_true")
    parser.option(
        "--models", f"some of {','.join(MODELS)}, with commas (default: all)", metavar="NAMES"
    )
    parser.option(
        "--tasks",
        "tasks whose names match, such as 'sd3/*/S8'; may be given many times",
        repeated=True,
        metavar="PATTERN",
    )
    parser.option("--list", "print tasks and network evaluations, run nothing", action="store_true")
    parser.option("--json", "print the summary as JSON", action="store_true")
    parser.option("--out", f"folder of the results (default: suite-v{VERSION})", type=Path)
    kept = "folder that keeps what was measured (default: cells in the folder of the results)"
    parser.option("--store", kept, type=Path)
    return parser


if __name__ == "__main__":
    run(main)
