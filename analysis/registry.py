"""All scripts, in the order of the page."""

from __future__ import annotations

import importlib

from analysis.base import FigureFile, Script, TableFile

NAMES = (
    "hypotheses",
    "predictors",
    "regret",
    "rivals",
    "pareto",
    "grids",
    "quality",
    "first_last",
    "ranks",
    "transfer",
    "drift",
    "tasks",
    "allocators",
    "allocators_live",
    "levels",
    "costs",
    "prefix_tree",
)
SCRIPTS: tuple[Script, ...] = tuple(
    importlib.import_module(f"analysis.{name}").SCRIPT for name in NAMES
)
TABLES = tuple(o for script in SCRIPTS for o in script.outputs if isinstance(o, TableFile))
FIGURES = tuple(o for script in SCRIPTS for o in script.outputs if isinstance(o, FigureFile))
