"""Everything that is checked or rebuilt by one command. `nox --list` tells what there is."""

import shutil
import tempfile
from pathlib import Path

import nox

nox.needs_version = ">=2025.2"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["tests"]

# Nothing that runs here downloads: what is missing is an error, not a fetch in silence.
OFFLINE = {"HF_HUB_OFFLINE": "1"}


def _tests(session: nox.Session, *arguments: str) -> None:
    """Lint, spelling, types, and tests with coverage, in two processes."""
    session.install("-c", "constraints.txt", "-e", ".[dev]")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("codespell")
    session.run("mypy")
    alone = {**OFFLINE, "OMP_NUM_THREADS": "1"}  # two processes of two threads would wait for cores
    # a part of the tests covers a part of the code
    covered = ("--no-cov",) if session.posargs else ("--cov", "--cov-report=term")
    command = ("pytest", "-n", "2", "--dist", "loadfile", *covered, *arguments)
    session.run(*command, *session.posargs, env=alone)


@nox.session
def tests(session: nox.Session) -> None:
    """Lint, spelling, types, tests but long simulations; arguments after -- go to pytest."""
    _tests(session, "-m", "not slow")


@nox.session
def tests_full(session: nox.Session) -> None:
    """The same with the long simulations."""
    _tests(session)


@nox.session
def reproduce(session: nox.Session) -> None:
    """Rebuild reports/ and compare it with data/golden; -- --quick is a small profile, --
    --collect runs no model.
    """
    session.install("-c", "constraints.txt", "-e", ".[all]")
    session.run("python", "-m", "analysis.reproduce", *session.posargs, env=OFFLINE)


@nox.session
def bless(session: nox.Session) -> None:
    """Make what reproduce built the goldens: -- --reason "..." (-- --quick --reason "...")."""
    session.install("-c", "constraints.txt", "-e", ".[all]")
    built = "build/quick" if "--quick" in session.posargs else "build/full"
    command = ("python", "-m", "analysis.golden", "bless", "--reports", built)
    session.run(*command, *session.posargs, env=OFFLINE)


@nox.session
def tests_minimal(session: nox.Session) -> None:
    """The allocators, and the analysis of a recording, where there is no torch."""
    session.install("-c", "constraints.txt", "-e", ".", "hypothesis", "pytest", "pytest-timeout")
    absent = "import importlib.util as u; assert not u.find_spec('torch')"
    session.run("python", "-c", absent)
    tests = ("tests/allocators", "tests/test_plan.py", "tests/test_minimal.py")
    # the fixtures of all tests are pipelines
    session.run("pytest", "--noconftest", *tests, *session.posargs)


@nox.session
def release(session: nox.Session) -> None:
    """Build wheel and sdist into dist/ and check them; then `installed`, to which arguments go."""
    session.install("-c", "constraints.txt", "build[uv]", "twine")
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build", "--installer", "uv")
    session.run("twine", "check", "--strict", *map(str, Path("dist").iterdir()))
    session.notify("installed", session.posargs)


@nox.session
def installed(session: nox.Session) -> None:
    """Run the main job from the wheel in dist/, away from the checkout; its options go after --."""
    [wheel] = Path("dist").resolve().glob("*.whl")
    session.install("-c", "constraints.txt", f"tmpdiff_bench[all] @ {wheel.as_uri()}")
    with tempfile.TemporaryDirectory() as folder, session.chdir(folder):
        command = ("python", "-m", "tmpdiff_bench.additivity", "--model", "sd3")
        session.run(*command, *session.posargs, env=OFFLINE)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation, whose gallery runs, into build/docs, and open it in a browser."""
    session.install("-c", "constraints.txt", "-e", ".[dev,docs]")
    session.run("sphinx-build", "-W", "--keep-going", "-q", "docs", "build/docs", env=OFFLINE)
    session.run("pytest", "tests/test_site.py", env=OFFLINE)
