"""Weights: the embedded ones, a folder saved elsewhere, and clear errors for all else."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from logging.handlers import BufferingHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from huggingface_hub.errors import GatedRepoError

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.noise import initial_noise
from tmpdiff_bench.pipelines import MODELS, LoadedModel, load_model


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_embedded_and_saved_elsewhere_are_one_path(tmp_path: Path) -> None:
    embedded = load_model("sd3")
    assert embedded.title == "sd3 (embedded, 3.5 M)"
    embedded.pipeline.save_pretrained(tmp_path / "copy")
    copy = load_model("sd3", weights=str(tmp_path / "copy"))
    assert_same_latents(embedded, copy)
    assert embedded.digest != copy.digest, "saved in another dtype: other files"


def test_the_digest_notices_one_changed_weight(
    tmp_path: Path, untrained_sd3: StableDiffusion3Pipeline
) -> None:
    untrained_sd3.save_pretrained(tmp_path)
    before = load_model("sd3", weights=str(tmp_path)).digest
    path = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert load_model("sd3", weights=str(tmp_path)).digest != before


def test_wrong_values_are_named() -> None:
    with pytest.raises(UsageError, match="unknown model 'sd4': did you mean 'sd3'"):
        load_model("sd4")
    with pytest.raises(UsageError, match="device 'cuda:77' is not available here"):
        load_model("sd3", device="cuda:77")
    with pytest.raises(UsageError, match="device 'gpu' is not available here"):
        load_model("sd3", device="gpu")


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("weights", ["no/such-repository", "./absent folder", "absent"])
def test_absent_weights_name_both_ways_out(family: str, weights: str) -> None:
    with pytest.raises(UsageError, match="neither a local folder nor a reachable hub") as caught:
        load_model(family, weights=weights)
    assert "--weights embedded" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_diffusers_says_of_an_absent_hub_is_not_said_besides() -> None:
    handler = BufferingHandler(100)
    logger = logging.getLogger("diffusers")
    before = logger.level
    logger.addHandler(handler)
    try:
        with pytest.raises(UsageError):
            load_model("sd3", weights="no/such-repository")
    finally:
        logger.removeHandler(handler)
    assert handler.buffer == []
    assert logger.level == before


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no model_index"):
        load_model("sd3", weights=str(tmp_path))
    index = tmp_path / "model_index.json"
    index.write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(UsageError, match="holds a FluxPipeline, but --model sd3 takes a Stable"):
        load_model("sd3", weights=str(tmp_path))
    index.write_text(json.dumps({"_class_name": "StableDiffusion3Pipeline"}))
    with pytest.raises(UsageError, match="holds no part of a pipeline"):
        load_model("sd3", weights=str(tmp_path))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("family", MODELS)
def test_every_family_from_a_folder_and_from_the_hubs_cache(
    family: str,
    untrained: Callable[[str], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One code path: a saved pipeline, and the same files where the hub's client keeps them."""
    untrained(family).save_pretrained(tmp_path / "saved")
    saved = load_model(family, weights=str(tmp_path / "saved"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    in_hub_cache(tmp_path / "saved", tmp_path / "hub", "someone/tiny", revision="v1")
    cached = load_model(family, weights="someone/tiny", revision="v1")
    assert cached.digest == saved.digest
    assert cached.title.startswith(f"{family} (someone/tiny, ")
    assert_same_latents(cached, saved)
    with pytest.raises(UsageError, match="neither a local folder nor a reachable hub"):
        load_model(family, weights="someone/tiny", revision="v2")
    other = "flux" if family == "sd3" else "sd3"
    with pytest.raises(UsageError, match=f"but --model {other} takes a"):
        load_model(other, weights="someone/tiny", revision="v1")


def in_hub_cache(source: Path, cache: Path, repository: str, *, revision: str) -> None:
    """Lay files out as the hub's client keeps a downloaded repository."""
    commit = "0" * 40
    folder = cache / f"models--{repository.replace('/', '--')}"
    shutil.copytree(source, folder / "snapshots" / commit)
    reference = folder / "refs" / revision
    reference.parent.mkdir(parents=True)
    reference.write_text(commit)


def assert_same_latents(first: LoadedModel, second: LoadedModel) -> None:
    results = []
    for loaded in (first, second):
        stepwise = loaded.stepwise(steps=2, guidance=4.0)
        noise = initial_noise([("a", 0)], stepwise.latent_shape)
        state, conditioning = stepwise.initial_state(noise), stepwise.encode(["a red circle"])
        for step in range(2):
            state = stepwise.step(state, step, stepwise.denoiser, conditioning)
        results.append(state.latents)
    assert torch.equal(*results)


@pytest.mark.parametrize("family", MODELS)
def test_pickled_parts_are_refused(
    family: str, untrained: Callable[[str], Any], tmp_path: Path
) -> None:
    """One component without safetensors among others that have them."""
    untrained(family).save_pretrained(tmp_path)
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    (tmp_path / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UsageError, match="vae has no safetensors weights; pickled") as caught:
        load_model(family, weights=str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", MODELS)
def test_gated_weights_say_how_to_log_in(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> str:
        answer: Any = SimpleNamespace(headers={}, request=None)
        raise GatedRepoError("Access to this model is restricted.", response=answer)

    monkeypatch.setattr("diffusers.DiffusionPipeline.download", refused)
    with pytest.raises(UsageError, match="hf auth login") as caught:
        load_model(family, weights="someone/gated")
    assert "restricted" in str(caught.value)
