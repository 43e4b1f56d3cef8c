"""The layers of DESIGN section 2 and other rules about the source, read from its syntax trees."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from vulture import Vulture

import tmpdiff_bench

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tmpdiff_bench"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAX_LINES = 450

# From the bottom up; a member imports from lower floors and from itself only. `metrics` stands
# below `trajectory`, unlike in DESIGN, as recordings hold the values of metrics. `prompts` takes
# those of Scenes from `zoo`. `problems` makes problems for `allocators` from recordings and live
# pipelines, so it stands above both.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors.py",),
    ("files.py",),
    ("plan.py", "commands.py", "statistics.py"),
    ("allocators",),
    ("store", "noise.py"),
    ("pipelines", "levels", "report"),
    ("zoo",),
    ("metrics", "prompts"),
    ("experiment.py",),
    ("options.py", "trajectory"),
    ("additivity", "costs", "problems"),
    ("suite", "deploy"),
)
# Commands stand on top: they may import from every floor, and nothing imports from them.
COMMAND = "__main__.py"
FLOOR_OF = {member: height for height, floor in enumerate(FLOORS) for member in floor}
NO_MEMBERS = {"__init__.py", "__init__.pyi", "__pycache__", "data", "py.typed"}
OUTSIDE = ("analysis", "benchmarks", "tests", "noxfile")

MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = [*MODULES, ROOT / "noxfile.py"] + [
    path for folder in OUTSIDE for path in sorted((ROOT / folder).rglob("*.py"))
]
LEAN = ["tmpdiff_bench"] + ["tmpdiff_bench.allocators"] * (PACKAGE / "allocators").exists()
PICKLING = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.AST) -> Iterator[str]:
    """The dotted name of everything that a module imports; relative ones begin with a dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            yield from (f"{source}.{alias.name}" for alias in node.names)


def is_allowed(name: str, member: str) -> bool:
    """Whether a module of `member` may import `name`."""
    top, _, rest = name.partition(".")
    if top != "tmpdiff_bench":
        return top not in ("", *OUTSIDE)
    target = rest.partition(".")[0]
    target = f"{target}.py" if f"{target}.py" in FLOOR_OF else target
    if target == member:
        return True
    return target == "__version__" or FLOOR_OF.get(target, len(FLOORS)) < FLOOR_OF[member]


def runs_stored_code(tree: ast.AST) -> bool:
    """Whether a module unpickles, or lets a checkpoint bring its own code."""
    names = [name.partition(".")[0] for name in imports(tree)]
    unpickles = any(name in PICKLING for name in names) or "torch.load" in imports(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load":
            unpickles = True
        if isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "allow_pickle"):
            unpickles |= ast.unparse(node.value) != "False"
    return unpickles


def test_members_are_those_of_the_design() -> None:
    assert {path.name for path in PACKAGE.iterdir()} - NO_MEMBERS <= set(FLOOR_OF)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down_only(path: Path) -> None:
    member = path.relative_to(PACKAGE).parts[0]
    if member == "__init__.py":  # hands on names of every floor, lazily
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not any(name.endswith(".__main__") for name in imports(tree))
    if path.name != COMMAND:
        assert [name for name in imports(tree) if not is_allowed(name, member)] == []


def test_no_modules_import_one_another() -> None:
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in MODULES}
    known = {name.removesuffix(".__init__"): path for path, name in names.items()}

    def imported(path: Path) -> set[str]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):  # what only types need is no import
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                node.body = [ast.Pass()]
        dotted = (name.rpartition(".")[0] if name not in known else name for name in imports(tree))
        return {name for name in dotted if name in known}

    graph = {name: imported(path) - {name} for name, path in known.items()}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_nothing_is_there_for_tests_alone() -> None:
    """Vulture finds no function, class, method or property without a use, but what docs name."""
    finder = Vulture()
    folders = [str(ROOT / folder) for folder in ("tmpdiff_bench", "analysis", "benchmarks")]
    finder.scavenge([*folders, str(ROOT / "noxfile.py")])
    docs = " ".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    kinds = {"function", "class", "method", "property"}
    unused = {x.name for x in finder.get_unused_code(min_confidence=60) if x.typ in kinds}
    sessions = {
        "reproduce",
        "bless",
        "tests",
        "tests_full",
        "tests_minimal",
        "release",
        "installed",
        "docs",
        "__getattr__",
        "_repr_html_",
    }
    assert {name for name in unused - sessions if f"{name}" not in docs} == set()


@pytest.mark.parametrize(
    ("statement", "member", "allowed"),
    [
        ("from tmpdiff_bench.errors import UsageError", "plan.py", True),
        ("from tmpdiff_bench.levels import LevelBank", "trajectory", True),
        ("from tmpdiff_bench.trajectory.engine import evaluate", "trajectory", True),
        ("from tmpdiff_bench import __version__", "trajectory", True),
        ("import numpy.linalg", "allocators", True),
        ("from tmpdiff_bench.trajectory import record", "levels", False),
        ("import tmpdiff_bench.zoo.scenes", "levels", False),
        ("from tmpdiff_bench.plan import PrecisionPlan", "errors.py", False),
        ("from tmpdiff_bench import PrecisionPlan", "trajectory", False),
        ("from tmpdiff_bench import suite", "trajectory", False),
        ("import tmpdiff_bench", "trajectory", False),
        ("from . import engine", "trajectory", False),
        ("from ..plan import PrecisionPlan", "trajectory", False),
        ("from analysis import table", "suite", False),
        ("def late():\n    from tmpdiff_bench.suite import tasks", "costs", False),
    ],
)
def test_the_rule_of_layers_is_applied(statement: str, member: str, allowed: bool) -> None:
    assert all(is_allowed(name, member) for name in imports(ast.parse(statement))) == allowed


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_unpickles_or_runs_code_of_checkpoints(path: Path) -> None:
    assert not runs_stored_code(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("import pickle", True),
        ("from torch import load", True),
        ("weights = torch.load(path, weights_only=True)", True),
        ("np.load(path, allow_pickle=True)", True),
        ("from_pretrained(path, trust_remote_code=flag)", True),
        ("from_pretrained(path, trust_remote_code=False)", False),
        ("from safetensors.torch import load_file", False),
        ("json.load(file)", False),
    ],
)
def test_the_rule_of_pickles_is_applied(statement: str, found: bool) -> None:
    assert runs_stored_code(ast.parse(statement)) == found


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_are_short_and_hold_one_idea(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES
    assert path.name != "utils.py"


def test_what_is_imported_is_a_declared_dependency() -> None:
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *extras["models"], *extras["metrics"]]
    declared = {re.split("[<>=!~; ]", line)[0] for line in lines}
    distributions = packages_distributions()
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in MODULES]
    used = {name.partition(".")[0] for tree in trees for name in imports(tree)}
    undeclared = {
        name: distributions.get(name)
        for name in used - {"tmpdiff_bench", *sys.stdlib_module_names}
        if declared.isdisjoint(d.lower().replace("_", "-") for d in distributions.get(name, []))
    }
    assert undeclared == {}


def test_pipeline_classes_are_named_in_the_registry_only() -> None:
    import diffusers

    kinds = {name for name in dir(diffusers) if name.endswith("Pipeline")} - {"DiffusionPipeline"}
    named = {
        name_of(path): sorted(found)
        for folder in ("pipelines", "trajectory", "deploy", "levels", "suite", "problems", "costs")
        for path in sorted((PACKAGE / folder).glob("*.py"))
        if (found := kinds & set(re.findall(r"\w+Pipeline", path.read_text(encoding="utf-8"))))
    }
    assert set(named) == {"tmpdiff_bench/pipelines/embedded.py"}


def test_allocators_need_numpy_only() -> None:
    trees = [ast.parse(path.read_text("utf-8")) for path in (PACKAGE / "allocators").glob("*.py")]
    used = {name.partition(".")[0] for tree in trees for name in imports(tree)}
    # matplotlib when something is drawn
    assert used - sys.stdlib_module_names == {"numpy", "matplotlib", "tmpdiff_bench"}


@pytest.mark.parametrize("module", LEAN)
def test_import_is_lean(module: str) -> None:
    program = f"import sys, {module}; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert module in loaded
    assert not {"torch", "diffusers", "transformers", "pandas"} & set(loaded)


@pytest.mark.parametrize("name", tmpdiff_bench.__all__)
def test_public_names_exist(name: str) -> None:
    assert name in dir(tmpdiff_bench)
    assert getattr(tmpdiff_bench, name) is not None


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    assert not hasattr(tmpdiff_bench, "schedule")  # any other exception would pass through here


def test_the_version_is_that_of_the_project() -> None:
    assert tmpdiff_bench.__version__ == PROJECT["version"]
