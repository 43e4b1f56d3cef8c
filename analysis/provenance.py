"""Where a file of `reports/` comes from: what was read, by which code, on what machine."""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# What is generated says nothing about the code that generated it.
GENERATED = ("reports", "data/golden", "data/manifest.toml")
PACKAGES = ("tmpdiff_bench", "diffusers", "matplotlib", "numpy", "pandas", "scipy", "torch")
_PROCESSOR = ("model name", "cpu family", "model", "stepping")


def sha256(path: Path) -> str:
    """The digest of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def git_state() -> dict[str, Any]:
    """The commit, and whether the code differs from it (generated files don't count)."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "dirty": None}
    without = [f":(exclude){name}" for name in GENERATED]
    return {"commit": commit, "dirty": bool(_git("status", "--porcelain", "--", ".", *without))}


def versions() -> dict[str, str]:
    """Python and the packages that change numbers or figures."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def machine() -> dict[str, str]:
    """What decides the last bits of a number: processor, instruction set, threads, torch; and
    `kernels`, a digest of those bits, as processors of one name may run other kernels.
    """
    import torch  # here, as most scripts need none

    return {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "kernels": _kernels(),
    }


def leads_to(paths: Iterable[Path], folder: Path) -> list[dict[str, Any]]:
    """The keys of recordings and of suite results among the inputs; cells are stored under them."""
    found = []
    for path in paths:
        if path.name not in ("manifest.json", "summary.json"):
            continue
        content = json.loads(path.read_text(encoding="utf-8"))
        manifest = content.get("manifest", content)
        named = {name: manifest[name] for name in ("key", "title", "digests") if name in manifest}
        weights = manifest.get("workload", manifest).get("weights_digest")
        found.append({"input": relative(path, folder), **named, "weights_digest": weights})
    return found


def relative(path: Path, folder: Path) -> str:
    """A path below the reports folder or below the repository, never one of this machine."""
    base = folder if path.is_relative_to(folder) else ROOT
    return path.relative_to(base).as_posix()


def provenance(
    *, command: str, inputs: Iterable[Path], outputs: Mapping[str, bytes], folder: Path
) -> dict[str, Any]:
    """The content of a `.prov.json`: `outputs` are its files, by name, below `folder`."""
    paths = sorted(inputs)
    return {
        "command": command,
        "inputs": {relative(path, folder): sha256(path) for path in paths},
        "outputs": {name: hashlib.sha256(data).hexdigest() for name, data in outputs.items()},
        "leads_to": leads_to(paths, folder),
        "git": git_state(),
        "versions": versions(),
        "machine": machine(),
    }


@functools.cache
def _kernels() -> str:
    """Of what layers like those of the embedded models make of fixed inputs."""
    import torch
    from torch.nn import functional

    random = torch.Generator().manual_seed(0)
    found = hashlib.sha256()
    for rows in (2, 4, 8, 16, 32):
        tokens = torch.randn(rows, 88, 192, generator=random)
        wide = functional.gelu(functional.linear(tokens, torch.randn(768, 192, generator=random)))
        heads = functional.layer_norm(tokens, (192,)).unflatten(2, (4, 48)).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(heads, heads, heads)
        pixels = functional.conv2d(
            tokens[:, :64].transpose(1, 2).unflatten(2, (8, 8)),
            torch.randn(64, 192, 3, 3, generator=random),
            padding=1,
        )
        for made in (wide, mixed, functional.silu(functional.group_norm(pixels, 8))):
            found.update(made.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.partition(":")[::2] for line in lines if ":" in line)
    named = {name.strip(): value.strip() for name, value in fields.items()}
    return ", ".join(named[name] for name in _PROCESSOR if name in named)


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
