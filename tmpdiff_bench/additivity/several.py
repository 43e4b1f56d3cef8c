"""The main job for several models, or for several recordings, into one folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tmpdiff_bench.additivity.analysis import analyse
from tmpdiff_bench.additivity.joint import join
from tmpdiff_bench.additivity.joint_report import check_joint_folder, joint_text, write_joint
from tmpdiff_bench.additivity.report import write_report
from tmpdiff_bench.errors import UsageError

if TYPE_CHECKING:
    from tmpdiff_bench.trajectory import Recording

_MANIFEST = "manifest.json"


def every_model(out: Path, settings: Mapping[str, Any], *, margin: float) -> str:
    """Record and analyse all embedded families into `out`, each in a folder of its own, and write
    the joint report; returns its summary. Families without weights here are left out, and said so.

    Raises `UsageError` as `record_design`, and where no family has weights.
    """
    from tmpdiff_bench.additivity.experiment import planned_nfe, record_design
    from tmpdiff_bench.pipelines import MODELS, embedded_models

    models = embedded_models()
    absent = "its embedded weights are not in this installation"
    left_out = {model: absent for model in MODELS if model not in models}
    if not models:
        raise UsageError("no embedded weights are in this installation: reinstall the package")
    check_joint_folder(out, models)
    planned = {model: planned_nfe(model, **settings) for model in models}
    for model, reason in left_out.items():
        print(f"{model}: left out, {reason}", file=sys.stderr)
    each = ", ".join(f"{model} {nfe:,}" for model, nfe in planned.items())
    print(f"{sum(planned.values()):,} network evaluations in all: {each}", file=sys.stderr)

    def recorded() -> Iterator[tuple[str, Recording]]:
        for model in models:
            try:
                yield (
                    model,
                    record_design(model, folder=out / model / "recording", **settings),
                )
            except UsageError as error:
                raise UsageError(f"{model}: {error}") from error

    return _written(recorded(), out, left_out, metrics=None, margin=margin)


def several_recordings(
    paths: Sequence[Path], out: Path, *, metrics: Sequence[str] | None, margin: float
) -> str:
    """Analyse existing recordings together, as `every_model` does."""
    from tmpdiff_bench.trajectory import Recording

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
        write_report(reports[name], recording, out / name)
    joint = join(reports, left_out)
    return joint_text(joint, write_joint(joint, out))
