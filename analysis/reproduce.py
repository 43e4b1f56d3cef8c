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
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from analysis.base import Reports
from analysis.golden import check, golden_folder
from analysis.page import gaps, write_page
from analysis.provenance import ROOT
from analysis.registry import SCRIPTS, TABLES
from tmpdiff_bench.commands import ArgumentParser, run
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.report.pages import inlined
from tmpdiff_bench.store import write_atomically

# In the build, and too large for reports/: what models gave, to be resumed from.
NOT_PUBLISHED = ("recording", "cells", "pictures.safetensors", "suite-parts", "logs", "*.png")
# Of the pictures in two kinds; all others are there as svg.
SHOWN_BY_README = "additivity/sd3/figures/predicted-against-measured.png"
# Made by other commands or by hand.
KEPT = ("README.md", "benchmarks")
# Of a job: as many jobs run at once as there are cores, and last bits depend on threads.
THREADS = 1
_SHOWN = re.compile(r"[^\r\n]*\d+%")  # a progress bar up to its share


@dataclass(frozen=True)
class Job:
    """A command that runs a model; `{out}` is the build folder, `made` what it leaves there."""

    arguments: str
    made: str

    @property
    def name(self) -> str:
        """The folder that it makes, as a word."""
        return self.made.rpartition("/")[0].replace("/", "-")

    def command(self, folder: Path) -> list[str]:
        """The whole command line."""
        return [sys.executable, "-m", *(word.format(out=folder) for word in self.arguments.split())]


def additivity(model: str, options: str = "") -> Job:
    """The main job of one model."""
    arguments = (
        f"tmpdiff_bench.additivity --model {model} {options}--out {{out}}/additivity/{model}"
    )
    return Job(arguments, f"additivity/{model}/summary.json")


def suite_part(model: str, options: str = "") -> Job:
    """The suite's tasks of one model; what they measure is in the store of the whole."""
    arguments = (
        f"tmpdiff_bench.suite {options}--models {model} --store {{out}}/suite-v1/cells "
        f"--out {{out}}/suite-parts/{model}"
    )
    return Job(arguments, f"suite-parts/{model}/manifest.json")


# Jobs of a stage need nothing of one another, and all of the stage before.
FULL = (
    (  # about in the order of their time, longest first, so that no core waits long at the end
        suite_part("sdxl"),
        additivity("sdxl"),
        suite_part("sd3"),
        Job(
            "analysis.live_allocations --out {out}/live-allocations",
            "live-allocations/speedup-2.5.json",
        ),
        additivity("sd3"),
        suite_part("flux"),
        additivity("flux"),
        Job("analysis.every_plan --out {out}/every-plan", "every-plan/sample-3.safetensors"),
        suite_part("pixart"),
        additivity("pixart"),
    ),
    (
        Job("tmpdiff_bench.suite --out {out}/suite-v1", "suite-v1/manifest.json"),
        Job(
            "tmpdiff_bench.additivity --model all --out {out}/additivity",
            "additivity/summary.json",
        ),
    ),
)
QUICK = (
    (
        *(suite_part(model, "--quick ") for model in ("sd3", "flux")),
        additivity(
            "sd3",
            "--levels fp32,w8a8,w4a4 --steps 6 --num-prompts 4 --num-seeds 1 --joint-plans 4 ",
        ),
        Job(
            "analysis.live_allocations --samples 1 --steps 5 --out {out}/live-allocations",
            "live-allocations/speedup-2.5.json",
        ),
        Job(
            "analysis.every_plan --samples 1 --steps 5 --out {out}/every-plan",
            "every-plan/sample-0.safetensors",
        ),
    ),
    (Job("tmpdiff_bench.suite --quick --out {out}/suite-v1", "suite-v1/manifest.json"),),
)


def run_jobs(jobs: Sequence[Job], folder: Path) -> None:
    """Run all, as many at once as there are cores; what they print is in `logs`.

    Raises `UsageError` where some fail, naming them and what they said last.
    """
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
    running: list[Job] = []

    def one(job: Job) -> str:
        running.append(job)
        started = time.perf_counter()
        with (logs / f"{job.name}.log").open("wb") as log:
            command = job.command(folder)
            done = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        running.remove(job)
        shown = job.arguments.format(out=folder.name)
        bar.write(f"{time.perf_counter() - started:6.0f} s  python -m {shown}", file=sys.stdout)
        bar.update()
        if not done.returncode:
            return ""
        said = _last_line(logs / f"{job.name}.log")
        return f"`python -m {shown}` ended with status {done.returncode}: {said}"

    with (
        tqdm(total=len(jobs), unit="job", desc="models", smoothing=0) as bar,
        ThreadPoolExecutor(min(os.cpu_count() or 1, len(jobs))) as pool,
    ):
        found = [pool.submit(one, job) for job in jobs]
        shown = ""
        try:
            while not all(future.done() for future in found):
                time.sleep(0.5)
                if (words := ", ".join(_progress(logs, job) for job in [*running])) != shown:
                    bar.set_postfix_str(shown := words)
        except KeyboardInterrupt:  # which those that run have got too
            pool.shutdown(cancel_futures=True)
            raise
    if failed := [said for future in found if (said := future.result())]:
        raise UsageError(
            "; ".join(failed) + f". All they said is in {logs}; the same command goes on from there"
        )


def _progress(logs: Path, job: Job) -> str:
    """A running job's name and the share of its progress bar."""
    try:
        text = (logs / f"{job.name}.log").read_text(encoding="utf-8", errors="replace")[-2000:]
    except OSError:
        return job.name
    shares = _SHOWN.findall(text)
    return f"{job.name} {shares[-1].split()[-1]}" if shares else job.name


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.rpartition("\r")[2].strip() for line in lines[::-1] if line.strip()), "")


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
    """Replace what is in `reports`, but for `KEPT`, by what was built; figures are there once."""
    for old in reports.iterdir():
        if old.name not in KEPT:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    skipped = shutil.ignore_patterns(*NOT_PUBLISHED, ".*")
    shutil.copytree(folder, reports, ignore=skipped, dirs_exist_ok=True)
    for path in folder.glob("additivity/**/report.html"):
        page = linked(path.read_text(encoding="utf-8"), path.parent / "figures")
        write_atomically(reports / path.relative_to(folder), page.encode())
    if (folder / SHOWN_BY_README).is_file():
        shutil.copy(folder / SHOWN_BY_README, reports / SHOWN_BY_README)


def linked(page: str, figures: Path) -> str:
    """A page that shows the svg files of the folder beside it where `inlined` put them into it."""
    files = {f"figures/{path.name}": path.read_bytes() for path in figures.glob("*.*")}
    for name, uri in inlined(files).items():
        page = page.replace(uri, f"figures/{name}.svg")
    return page


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
    stages = QUICK if options.quick else FULL
    torch.set_num_threads(THREADS)
    if not options.collect:
        for jobs in stages:
            run_jobs(jobs, folder)
    left_out = run_scripts(Reports(folder, options.quick), collect=options.collect)
    if options.collect:
        made = [job.made for jobs in stages for job in jobs]
        missing = [name for name in made if not (folder / name).is_file()]
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
