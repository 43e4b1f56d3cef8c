"""Table: R² about the identity line of every predictor, by model, level and metric, over plans
(between their mean log errors) and over samples (every prompt and seed, in the metric's units).

    python analysis/predictors.py [RECORDING ...] [--out reports]

Reads recordings (default: `reports/additivity-*/recording`); writes `predictors.csv`, `.md` and
`.tex` into the reports folder, and prints the rows of the latent RMSE.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from tmpdiff_bench.additivity import analyse
from tmpdiff_bench.commands import ArgumentParser, run
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.trajectory import Recording


def table(recordings: Sequence[Path]) -> pd.DataFrame:
    """Rows by model, metric, predictor and what R² is over; a column per level ("-": none)."""
    frames = []
    for path in recordings:
        recording = Recording.open(path)
        scores = analyse(recording).scores_frame()
        frames.append(scores.assign(model=recording.manifest["title"]))
    joined = pd.concat(frames, ignore_index=True)
    levels = list(dict.fromkeys(joined["level"]))
    index = ["model", "metric", "predictor", "over"]
    joined = joined.melt([*index[:3], "level"], ["r2_plans", "r2_identity"], "over", "r2")
    joined["over"] = joined["over"].map({"r2_plans": "plans", "r2_identity": "samples"})
    wide = joined.pivot(index=index, columns="level", values="r2")[levels]
    order = joined[index].drop_duplicates().apply(tuple, axis=1)
    return wide.loc[list(order)].reset_index()


def main(argv: Sequence[str]) -> None:
    """Write the table of the recordings named on the command line."""
    parser = ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recordings", nargs="*", type=Path, metavar="RECORDING")
    parser.add_argument("--out", type=Path, default=Path("reports"))
    options = parser.parse_args(argv)
    recordings = options.recordings or sorted(options.out.glob("additivity-*/recording"))
    if not recordings:
        raise UsageError(f"no recording in {options.out}: run the main job with --out there first")
    wide = table(recordings)
    shown = wide.map(lambda v: f"{v:.3f}" if isinstance(v, float) else v).replace("nan", "-")
    lines = [shown.columns, ["---"] * shown.shape[1], *shown.to_numpy()]
    options.out.mkdir(parents=True, exist_ok=True)
    wide.to_csv(options.out / "predictors.csv", index=False)
    text = "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
    (options.out / "predictors.md").write_text(text, encoding="utf-8")
    tex = shown.to_latex(index=False, escape=True)
    (options.out / "predictors.tex").write_text(tex, encoding="utf-8")
    print(shown[shown["metric"] == "latent_rmse"].to_string(index=False))


if __name__ == "__main__":
    run(main)
