"""Rebuild every table, figure and the page of `reports/` from nothing but the repository.

    python -m analysis.reproduce             the full profile; then `reports/` is replaced
    python -m analysis.reproduce --quick     the small profile; `reports/` stays
    python -m analysis.reproduce --collect   no model runs: gather what is there, name the gaps

Everything is built in `build/full` or `build/quick`: a second run reuses recordings and stores
there, an interrupted one goes on. At the end tables are compared with `data/golden` cell by cell;
exit status 1 where one misses.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.base import Reports
from analysis.golden import check, golden_folder
from analysis.page import gaps, write_page
from analysis.provenance import ROOT
from analysis.registry import SCRIPTS, TABLES
from tmpdiff_bench.commands import ArgumentParser, run
from tmpdiff_bench.errors import UsageError

MODELS = ("sd3", "flux", "pixart", "sdxl")
# In the build, and of no use in reports/: what models gave, to be resumed from.
NOT_PUBLISHED = ("recording", "cells", "every-plan", "live-allocations")
# Made by other commands or by hand.
KEPT = ("README.md", "benchmarks")


@dataclass(frozen=True)
class Job:
    """A command that runs a model; `{out}` is the build folder, `made` what it leaves there."""

    arguments: str
    made: str

    def command(self, folder: Path) -> list[str]:
        """The whole command line."""
        return [sys.executable, "-m", *self.arguments.format(out=folder).split()]


FULL = (
    *(
        Job(
            f"tmpdiff_bench.additivity --model {model} --out {{out}}/additivity-{model}",
            f"additivity-{model}/summary.json",
        )
        for model in MODELS
    ),
    Job("analysis.every_plan --out {out}/every-plan", "every-plan/sample-3.safetensors"),
    Job(
        "analysis.live_allocations --out {out}/live-allocations",
        "live-allocations/speedup-2.5.json",
    ),
    Job("tmpdiff_bench.suite --out {out}/suite-v1", "suite-v1/manifest.json"),
)
QUICK = (
    Job(
        "tmpdiff_bench.additivity --model sd3 --levels fp32,w8a8,w4a4 --steps 6 --num-prompts 4 "
        "--num-seeds 1 --joint-plans 4 --out {out}/additivity-sd3",
        "additivity-sd3/summary.json",
    ),
    Job(
        "analysis.every_plan --samples 1 --steps 5 --out {out}/every-plan",
        "every-plan/sample-0.safetensors",
    ),
    Job(
        "analysis.live_allocations --samples 1 --steps 5 --out {out}/live-allocations",
        "live-allocations/speedup-2.5.json",
    ),
    Job("tmpdiff_bench.suite --quick --out {out}/suite-v1", "suite-v1/manifest.json"),
)


def installed(job: Job) -> bool:
    """Whether the embedded weights that it needs ship."""
    words = job.arguments.split()
    if "--model" not in words:
        return True
    model = words[words.index("--model") + 1]
    return (ROOT / "data" / "models" / model / "model_index.json").is_file()


def run_jobs(jobs: Sequence[Job], folder: Path) -> None:
    """Run all whose weights ship. Raises `UsageError` where one fails, naming it."""
    for number, job in enumerate(jobs, 1):
        print(f"[{number}/{len(jobs)}] python -m {job.arguments.format(out=folder.name)}")
        if not installed(job):
            print("  left out: its embedded weights do not ship yet")
            continue
        started = time.perf_counter()
        done = subprocess.run(job.command(folder), cwd=ROOT)
        if done.returncode:
            raise UsageError(
                f"`python -m {job.arguments}` ended with status {done.returncode}; the same "
                "command goes on where it was"
            )
        print(f"  {time.perf_counter() - started:.0f} s")


def run_scripts(reports: Reports, *, collect: bool) -> list[str]:
    """Make all tables, figures and the page; with `collect`, scripts whose inputs are missing are
    left out and named, else they raise.
    """
    left_out = []
    for script in SCRIPTS:
        started = time.perf_counter()
        try:
            script.run(reports)
        except UsageError as error:
            if not collect:
                raise
            left_out.append(f"{script.name}: {error}")
            continue
        print(f"{script.name}: {time.perf_counter() - started:.1f} s")
    print(f"page: {write_page(reports.folder)}")
    return left_out


def publish(folder: Path, reports: Path) -> None:
    """Replace what is in `reports`, but for `KEPT`, by what was built."""
    for old in reports.iterdir():
        if old.name not in KEPT:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    skipped = shutil.ignore_patterns(*NOT_PUBLISHED, ".*")
    shutil.copytree(folder, reports, ignore=skipped, dirs_exist_ok=True)


def main(argv: Sequence[str]) -> None:
    """Build, compare, publish."""
    parser = ArgumentParser(
        prog="python -m analysis.reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="the small profile")
    parser.add_argument("--collect", action="store_true", help="run no model")
    parser.add_argument("--build", type=Path, metavar="FOLDER", help="default: build/PROFILE")
    options = parser.parse_args(argv)
    profile = "quick" if options.quick else "full"
    folder = (options.build or ROOT / "build" / profile).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    jobs = QUICK if options.quick else FULL
    if not options.collect:
        run_jobs(jobs, folder)
    left_out = run_scripts(Reports(folder, options.quick), collect=options.collect)
    if options.collect:
        missing = [job.made for job in jobs if not (folder / job.made).is_file()]
        lines = [*(f"not run: {name}" for name in missing), *left_out, *gaps(folder)]
        print("\n".join(["gaps:", *lines]) if lines else "no gaps")
        return
    outcome = check(folder, golden_folder(options.quick), TABLES)
    print("\n".join(outcome.lines()))
    if profile == "full":
        publish(folder, ROOT / "reports")
    if outcome.misses:
        raise SystemExit(1)


if __name__ == "__main__":
    run(main)
