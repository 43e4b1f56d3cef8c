"""Perceptual distances of the `lpips` package: with published networks, and with Scenes' own."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from tmpdiff_bench.metrics.weights import ALEXNET, VGG, Weight, scenes_recogniser, sha256_of
from tmpdiff_bench.zoo.recogniser import Recogniser

NETWORKS: dict[str, Weight] = {"alex": ALEXNET, "vgg": VGG}
_VERSION = "0.1"  # of lpips' linear weights
_CHUNK = 32


def lpips_weights(network: str) -> dict[str, str]:
    """Files and digests of a published LPIPS: its network's, and the package's linear weights."""
    _, digest = NETWORKS[network].find()
    linear = Path(_package().__file__).parent / "weights" / f"v{_VERSION}" / f"{network}.pth"
    return {NETWORKS[network].file: digest, f"lpips/v{_VERSION}/{network}.pth": sha256_of(linear)}


def lpips_distance(network: str) -> Callable[[Tensor, Tensor], Tensor]:
    """LPIPS of images (n, 3, H, W) in [0, 1] per sample (Zhang et al. 2018); `alex` or `vgg`.

    Raises `NotAvailableError` where the network's file is not in torch.hub's cache.
    """

    def distance(x: Tensor, reference: Tensor) -> Tensor:
        _, digest = NETWORKS[network].find()
        return _in_chunks(_published(network, digest, str(x.device)), x, reference)

    return distance


def lpips_scenes(x: Tensor, reference: Tensor) -> Tensor:
    """LPIPS with the three stages of the Scenes recogniser, per sample; from 0 to 6.

    Channels weigh 1 each, which is the package's own uncalibrated form: there are no human
    judgements of Scenes to fit weights to.
    """
    return _in_chunks(_scenes(scenes_recogniser(str(x.device))), x, reference)


class Stages(nn.Module):
    """The recogniser's features of images in [-1, 1], as lpips hands them to its networks."""

    def __init__(self, recogniser: Recogniser) -> None:
        super().__init__()
        self.recogniser = recogniser

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.recogniser.features((images + 1) / 2)


def _package() -> Any:
    import lpips  # slow to import, and most commands never need it

    return lpips


def _build(**options: Any) -> nn.Module:
    """The package's network, without its warnings and its draws from the global random stream."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        network: nn.Module = _package().LPIPS(verbose=False, version=_VERSION, **options)
    return network.requires_grad_(False)


@lru_cache(maxsize=2)
def _published(network: str, _digest: str, device: str) -> nn.Module:
    return _build(net=network).to(device)


@lru_cache(maxsize=2)
def _scenes(recogniser: Recogniser) -> nn.Module:
    # the package takes no network of ours, so its smallest one is built and put aside
    network: Any = _build(net="squeeze", pnet_rand=True, lpips=False)
    network.net = Stages(recogniser)
    network.scaling_layer = nn.Identity()  # its constants are ImageNet's
    network.L = len(recogniser.stages)
    scenes: nn.Module = network
    return scenes


@torch.no_grad()
def _in_chunks(network: nn.Module, x: Tensor, reference: Tensor) -> Tensor:
    chunks = list(zip(x.float().split(_CHUNK), reference.float().split(_CHUNK), strict=True))
    bar = tqdm(chunks, desc="lpips", unit="batch", leave=False, disable=len(chunks) < 4)
    return torch.cat([network(a, b, normalize=True).flatten() for a, b in bar]).double()
