"""Everything that is checked or rebuilt by one command. `nox --list` tells what there is."""

import nox

nox.needs_version = ">=2025.2"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["tests"]

# Nothing that runs here downloads: what is missing is an error, not a fetch in silence.
OFFLINE = {"HF_HUB_OFFLINE": "1"}


@nox.session
def tests(session: nox.Session) -> None:
    """Lint, formatting, types and tests; arguments after -- go to pytest."""
    session.install("-c", "constraints.txt", "-e", ".[dev]")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")
    session.run("pytest", *session.posargs, env=OFFLINE)


@nox.session
def reproduce(session: nox.Session) -> None:
    """Rebuild reports/; arguments after -- go to the command of the main job."""
    session.install("-c", "constraints.txt", "-e", ".")
    command = ["python", "-m", "tmpdiff_bench.additivity", "--model", "sd3"]
    session.run(*command, "--out", "reports/additivity-sd3", *session.posargs, env=OFFLINE)
    session.run("python", "analysis/predictors.py", env=OFFLINE)
    session.run("python", "analysis/prefix_tree.py", env=OFFLINE)
    session.run("python", "-m", "analysis.every_plan", env=OFFLINE)
    session.run("python", "-m", "analysis.allocators", env=OFFLINE)
    session.run("python", "analysis/levels.py", env=OFFLINE)
