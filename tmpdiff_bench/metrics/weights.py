"""Weight files of the networks inside metrics: the shipped one, and published ones in caches.

Nothing is downloaded. A published file that is absent, or is not the published one, makes its
metrics "not available", under the name of the file.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from tmpdiff_bench.files import data_folder
from tmpdiff_bench.metrics.base import NotAvailableError
from tmpdiff_bench.pipelines.digests import file_digest
from tmpdiff_bench.zoo.recogniser import Recogniser, load_recogniser


@dataclass(frozen=True)
class Weight:
    """A published weight file: its name, the start of its sha256, and whose cache holds it."""

    file: str
    sha256: str
    cache: str

    def folder(self) -> Path:
        """Where the package that owns the cache keeps the file."""
        if self.cache == "clean-fid":
            return Path("." if platform.system() == "Windows" else "/tmp")
        return Path(torch.hub.get_dir()) / "checkpoints"

    def find(self) -> tuple[Path, str]:
        """Path and sha256. Raises `NotAvailableError` where the file is absent or another."""
        path = self.folder() / self.file
        if not path.is_file():
            raise NotAvailableError(f"{self.file} is not in the cache of {self.cache}")
        digest = sha256_of(path)
        if not digest.startswith(self.sha256):
            raise NotAvailableError(
                f"{self.file} in the cache of {self.cache} is damaged or another file "
                f"(sha256 {digest[:8]}, published {self.sha256[:8]})"
            )
        return path, digest


# torchvision's names hold the first eight digits
ALEXNET = Weight("alexnet-owt-7be5be79.pth", "7be5be79", "torch.hub")
VGG = Weight(
    "vgg16-397923af.pth",
    "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    "torch.hub",
)
INCEPTION = Weight(
    "inception-2015-12-05.pt",
    "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
    "clean-fid",
)


def scenes_weights() -> dict[str, str]:
    """File and digest of the recogniser that ships with the library."""
    path = data_folder() / "models" / "recogniser" / "model.safetensors"
    if not path.is_file():
        raise NotAvailableError("recogniser/model.safetensors is not in this installation")
    return {"recogniser/model.safetensors": sha256_of(path)}


def scenes_recogniser(device: str) -> Recogniser:
    """The recogniser that ships with the library, on a device; loaded once per device and file."""
    (digest,) = scenes_weights().values()
    return _load(digest, device)


@lru_cache(maxsize=2)
def _load(_digest: str, device: str) -> Recogniser:
    return load_recogniser().requires_grad_(False).to(device)


def sha256_of(path: Path) -> str:
    """The digest of a file, read once while the file stays as it is."""
    found = path.stat()
    return _digest(path, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=16)
def _digest(path: Path, _changed: int, _size: int) -> str:
    return file_digest(path)
