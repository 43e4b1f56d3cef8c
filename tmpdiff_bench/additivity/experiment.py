"""The main job: recording what the analysis needs, of one model or of several."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tmpdiff_bench.additivity.analysis import analyse, join
from tmpdiff_bench.additivity.joint_report import check_joint_folder, joint_text, write_joint
from tmpdiff_bench.additivity.report import write_report
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.experiment import Experiment
from tmpdiff_bench.trajectory import Recording

_MANIFEST = "manifest.json"


def every_model(experiment: Experiment, out: Path, *, margin: float) -> str:
    """Record and analyse all embedded models into `out`, each in a folder of its own, and write the
    joint report; returns its summary. Models without weights here are left out, and said so.

    Raises `UsageError` as `record`, and where no model has weights.
    """
    from tmpdiff_bench.pipelines import MODELS, embedded_models
    from tmpdiff_bench.trajectory import record

    models = embedded_models()
    absent = "its embedded weights are not in this installation"
    left_out = {model: absent for model in MODELS if model not in models}
    if not models:
        raise UsageError("no embedded weights are in this installation: reinstall the package")
    check_joint_folder(out, models)
    for model, reason in left_out.items():
        print(f"{model}: left out, {reason}", file=sys.stderr)

    def recorded() -> Iterator[tuple[str, Recording]]:
        for number, model in enumerate(models, 1):
            print(f"{model}: {number} of {len(models)} models", file=sys.stderr)
            mine = replace(experiment, model=model)
            try:
                yield model, record(mine, out / model / "recording")
            except UsageError as error:
                raise UsageError(f"{model}: {error}") from error

    return _written(recorded(), out, left_out, metrics=None, margin=margin)


def several_recordings(
    paths: Sequence[Path], out: Path, *, metrics: Sequence[str] | None, margin: float
) -> str:
    """Analyse existing recordings together, as `every_model` does."""
    opened: dict[str, Recording] = {}
    for path in paths:
        recording = Recording.open(path)
        model = str(recording.manifest["workload"]["model"])
        same = sum(name.split("-")[0] == model for name in opened)
        opened[f"{model}-{same + 1}" if same else model] = recording
    check_joint_folder(out, opened)
    return _written(iter(opened.items()), out, {}, metrics=metrics, margin=margin)


def find_recordings(paths: Sequence[Path]) -> list[Path]:
    """The recordings that paths name: recordings themselves, reports, or folders of reports."""
    found: list[Path] = []
    for path in paths:
        below = [path / "recording", *sorted(p / "recording" for p in path.glob("*"))]
        inside = [folder for folder in below if (folder / _MANIFEST).is_file()]
        found += [path] if (path / _MANIFEST).exists() or not inside else inside
    return list(dict.fromkeys(found))


def _written(
    recordings: Iterator[tuple[str, Recording]],
    out: Path,
    left_out: Mapping[str, str],
    *,
    metrics: Sequence[str] | None,
    margin: float,
) -> str:
    """Each model's report as soon as it is recorded, then the joint one."""
    reports = {}
    for name, recording in recordings:
        print(f"{name}: analysing", file=sys.stderr)
        reports[name] = analyse(recording, metrics=metrics, margin=margin)
        write_report(reports[name], out / name)
    joint = join(reports, left_out)
    return joint_text(joint, write_joint(joint, out))
