"""What `analyse` returns: all that it found in a recording, as tables, JSON and a report."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tmpdiff_bench.additivity import report, tables
from tmpdiff_bench.additivity.figures import predicted_against_measured
from tmpdiff_bench.additivity.records import (
    DesignFreeCheck,
    Fidelity,
    GramMatrix,
    Predictions,
    Score,
    Sensitivity,
    Superposition,
)
from tmpdiff_bench.report.pages import notebook_html
from tmpdiff_bench.report.style import MAIN_METRIC, metric_label
from tmpdiff_bench.statistics import Interval
from tmpdiff_bench.trajectory import Recording


@dataclass(frozen=True, eq=False)
class AdditivityReport:
    """All that `analysis.analyse` found in a recording; `manifest` is the recording's."""

    manifest: Mapping[str, Any]
    levels: tuple[str, ...]
    steps: int
    prompts: int
    samples: int
    margin: float
    alpha: float
    rule: str
    scores: tuple[Score, ...]
    superposition: tuple[Superposition, ...]
    design_free: tuple[DesignFreeCheck, ...]
    sensitivity: tuple[Sensitivity, ...]
    grams: tuple[GramMatrix, ...]
    predictions: tuple[Predictions, ...]
    warnings: tuple[str, ...]
    fidelity: tuple[Fidelity, ...] = ()
    recording: Recording | None = None

    def __repr__(self) -> str:
        verdicts = [
            f"{score.predictor} at {score.level} {score.verdict}"
            for score in self.scores
            if (score.metric, score.predictor) in ((MAIN_METRIC, "sum"), (MAIN_METRIC, "gram"))
        ]
        return f"AdditivityReport({self.manifest['title']}: {', '.join(verdicts)})"

    def _repr_html_(self) -> str:
        drawing = predicted_against_measured(self)
        [verdicts, *_] = tables.tables(self)
        shown = verdicts.text[verdicts.text["metric"] == metric_label(MAIN_METRIC)]
        columns = ["level", "predictor", "verdict", "R² over plans", "joint/predicted"]
        return notebook_html(repr(self), shown[columns], [drawing] if drawing else [])

    def save(self, folder: Path | str) -> Path:
        """Write the report's folder, as `write_report` does, and return its page."""
        return report.write_report(self, Path(folder))

    def scores_frame(self) -> pd.DataFrame:
        """One row per (level, metric, predictor): the columns that a reader compares."""
        return pd.DataFrame([_score_row(score) for score in self.scores])

    def superposition_frame(self) -> pd.DataFrame:
        """One row per level, intervals as `name`, `name_low`, `name_high`."""
        return pd.DataFrame([_scalars(record) for record in self.superposition])

    def design_free_frame(self) -> pd.DataFrame:
        """One row per (level, metric)."""
        return pd.DataFrame([_scalars(record) for record in self.design_free])

    def sensitivity_frame(self) -> pd.DataFrame:
        """One row per (level, metric, step)."""
        columns = ("error", "low", "high", "floor_ratio", "flagged")
        frames = [
            pd.DataFrame(
                {
                    "level": record.level,
                    "metric": record.metric,
                    "step": np.arange(len(record.error)),
                    **{name: getattr(record, name) for name in columns},
                }
            )
            for record in self.sensitivity
        ]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def fidelity_frame(self) -> pd.DataFrame:
        """One row per (metric, run): the reference and all joint plans."""
        rows = []
        for record in self.fidelity:
            row = {name: getattr(record, name) for name in ("metric", "plan", "kind", "unit")}
            row |= (record.mean or Interval()).columns("mean")
            rows.append({**row, "not_available": record.not_available})
        return pd.DataFrame(rows)

    def to_json(self) -> str:
        """Finite JSON text. NaN and infinities become null, each field named in `warnings`.

        Predicted and joint errors are means over samples; the recording has every row.
        """
        lost: dict[str, int] = {}
        data = _plain(dataclasses.replace(self, recording=None), "report", lost)
        del data["recording"]
        data["warnings"] += [
            f"{path} is null in {count} place(s): the number is not finite"
            for path, count in lost.items()
        ]
        return json.dumps(data, allow_nan=False, indent=1)


def _score_row(score: Score) -> dict[str, Any]:
    """Make a row with the same columns wherever the predictor is defined or not."""
    test = score.test
    clusters = test.clusters if test else (0, score.held_out_plans)
    row: dict[str, Any] = {
        name: getattr(score, name) for name in ("level", "metric", "predictor", "verdict")
    }
    row |= {name: getattr(test, name, math.nan) for name in ("r2_identity", "r2_plans")}
    row["r2_common"] = score.r2_common
    row["median_relative_error"] = getattr(test, "median_relative_error", math.nan)
    for name in ("ratio", "ratio_small", "ratio_large", "slope", "intercept"):
        row |= getattr(test, name, Interval()).columns(name)
    row |= (score.rank_within or Interval()).columns("rank_within")
    row["rank_pairs"] = score.rank_pairs
    for name in ("wald_p", "tost_p", "range_p", "outside_p", "reset_p"):
        row[name] = getattr(test, name, math.nan)
    for name in ("wald_p_holm", "equivalence_p_holm", "outside_p_holm"):
        row[name] = getattr(score, name)
    row |= {
        "floor_ratio": score.floor_ratio,
        "prompts": clusters[0],
        "plans": clusters[1],
        "clusters": min(clusters),
        "parameters": ", ".join(
            f"{name} {value.estimate:.4g} [{value.low:.4g}, {value.high:.4g}]"
            for name, value in score.parameters.items()
        ),
        "reason": score.reason,
    }
    return row


def _scalars(record: Superposition | DesignFreeCheck) -> dict[str, Any]:
    """Make a row of the fields that fit a table cell."""
    row: dict[str, Any] = {}
    for item in dataclasses.fields(record):
        value = getattr(record, item.name)
        if value is None or isinstance(value, Interval):
            row |= (value or Interval()).columns(item.name)
        elif item.name == "clusters":
            row[item.name] = min(value) if isinstance(value, tuple) else value
        elif not isinstance(value, (np.ndarray, tuple)):
            row[item.name] = value
    return row


def _plain(value: Any, path: str, lost: dict[str, int]) -> Any:
    """Turn `value` into dicts, lists, text and finite numbers; count what is lost, by path."""
    if isinstance(value, Predictions):
        means = {"predicted": value.predicted.mean(axis=1), "joint": value.joint.mean(axis=1)}
        value = dataclasses.replace(value, **means)
    if dataclasses.is_dataclass(value):
        value = {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{path}.{key}", lost) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, tuple | list):
        return [_plain(item, path, lost) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        lost[path] = lost.get(path, 0) + 1
        return None
    return value
