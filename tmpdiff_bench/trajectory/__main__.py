"""`python -m tmpdiff_bench.trajectory`: make recordings, look into them, check and convert them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tmpdiff_bench.commands import ArgumentParser, run
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.options import add_options, experiment

DESCRIPTION = """\
Runs a diffusion model with every step alone at low precision, and along plans of your own, and
keeps the final latents, images' metrics and all that is needed to analyse them without the model.
"""
EXAMPLES = """\
examples:
  python -m tmpdiff_bench.trajectory record --model sd3 --levels fp32,w4a4 --out mine
      every single step at w4a4, 16 prompts, 2 seeds
  python -m tmpdiff_bench.trajectory record --model sd3 --steps 8 --levels fp32,w4a4 \\
      --plan "fp32*2 w4a4*4 fp32*2" --plan "w4a4*8" --capture trajectory --out mine8
      two plans besides, and the latents after every step
  python -m tmpdiff_bench.trajectory record --weights FOLDER --device cuda --dtype bf16 \\
      --levels bf16,w4a4 --prompt-set mjhq --num-prompts 64 --call height=1024 --out mine-mjhq
      any diffusers pipeline; 64 calibration prompts of MJHQ-30K, from the hub or its cache
  python -m tmpdiff_bench.trajectory info mine
  python -m tmpdiff_bench.trajectory verify mine mine8
  python -m tmpdiff_bench.trajectory export mine --out mine-arrays
      table.csv and one .npy file an array, for other tools

Interrupted, `record` goes on where it was; repeated, it reuses its recording. With --store, cells
are kept, and found again by recordings of more prompts.
"""


def main(argv: Sequence[str]) -> None:
    """Run one of `record`, `info`, `verify`, `export`."""
    options = _parser().parse_args(argv)
    if options.command == "record":
        _record(options)
    elif options.command == "info":
        _info(options.recording)
    elif options.command == "verify":
        _verify(options.paths)
    else:
        _export(options.recording, options.out)


def _record(options: argparse.Namespace) -> None:
    asked = experiment(options)
    from tmpdiff_bench.trajectory import record

    recording = record(asked, options.out, store=options.store)
    nfe = recording.manifest["nfe"]
    print(
        f"{options.out}: {recording.singles.shape[1] * (len(recording.levels) - 1)} single and "
        f"{len(recording.plans)} joint runs of {len(recording.samples)} samples; "
        f"{nfe['spent']:,} NFE, one pipeline call per plan {nfe['plain_loop']:,}"
    )


def _info(folder: Path) -> None:
    from tmpdiff_bench.trajectory.recording import Recording, call_words

    recording = Recording.open(folder)
    manifest, workload = recording.manifest, recording.manifest["workload"]
    environment, nfe = manifest["environment"], manifest["nfe"]
    facts = {
        "model": f"{manifest['title']}, weights sha256 {workload['weights_digest'][:16]}",
        "levels": f"{', '.join(recording.levels[1:])} against {recording.levels[0]}",
        "sampler": f"{workload['sampler']['class']}, {recording.steps} steps",
        "call": call_words(workload["arguments"]),
        "samples": f"{len(recording.samples)}: {len(recording.prompts)} prompts of "
        f"{manifest['dataset']}, seeds {', '.join(map(str, workload['seeds']))}",
        "metrics": ", ".join(recording.table["metric"].unique()),
        "joint plans": f"{len(recording.plans)}, {int(recording.held_out.sum())} held out",
        "captured": manifest["capture"],
        "numerical floor": f"{recording.floor.mean():.2g} latent RMSE",
        "network evaluations": f"{nfe['spent']:,} ({nfe['plain_loop']:,} by plain loops), "
        f"{manifest['seconds']:g} s",
        "made by": f"tmpdiff_bench {environment['tmpdiff_bench']}, torch {environment['torch']}, "
        f"{environment['device']}",
        "size": f"{sum(p.stat().st_size for p in folder.iterdir() if p.is_file()):,} bytes",
    }
    width = max(map(len, facts)) + 2
    for name, value in facts.items():
        print(f"{name:<{width}}{value}")


def _verify(paths: Sequence[Path]) -> None:
    """Check recordings and stores. Raises `UsageError` naming everything that is damaged."""
    from tmpdiff_bench.store import CellStore
    from tmpdiff_bench.trajectory import Recording

    faults = []
    for path in paths:
        cells = CellStore(path)
        if (path / "manifest.json").exists() or not any(cells.keys()):
            try:
                Recording.open(path)
            except UsageError as error:
                faults.append(str(error))
            else:
                print(f"{path}: whole")
        elif damaged := cells.damaged():
            faults += [f"{cell} is damaged: delete it, it is computed again" for cell in damaged]
        else:
            print(f"{path}: {len(list(cells.keys()))} cells, all whole")
    if faults:
        raise UsageError("; ".join(faults))


def _export(folder: Path, out: Path) -> None:
    import numpy as np

    from tmpdiff_bench.trajectory import Recording

    recording = Recording.open(folder)
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file: name a folder")
    out.mkdir(parents=True, exist_ok=True)
    recording.table.to_csv(out / "table.csv", index=False)
    for name, value in vars(recording).items():
        if isinstance(value, np.ndarray):
            np.save(out / f"{name}.npy", value, allow_pickle=False)
    (out / "manifest.json").write_bytes((folder / "manifest.json").read_bytes())
    for path in sorted(out.iterdir()):
        print(f"{path}  {path.stat().st_size:,} bytes")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m tmpdiff_bench.trajectory", description=DESCRIPTION, epilog=EXAMPLES
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    record = commands.add_parser("record", help="run a model and write a recording")
    record.option("--out", "folder of the recording", type=Path, required=True)
    record.option("--store", "folder that keeps finished cells", type=Path)
    add_options(record, joint_plans=0)
    info = commands.add_parser("info", help="say what a recording holds")
    export = commands.add_parser("export", help="write a recording as CSV and .npy files")
    for command in (info, export):
        command.add_argument("recording", type=Path, metavar="RECORDING")
    export.option("--out", "folder of the files", type=Path, required=True)
    verify = commands.add_parser("verify", help="check recordings and stores against their sha256")
    verify.add_argument("paths", type=Path, nargs="+", metavar="PATH")
    return parser


if __name__ == "__main__":
    run(main)
