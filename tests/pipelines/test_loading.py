"""Weights: the embedded ones, a folder saved elsewhere, and clear errors for all else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.noise import initial_noise
from tmpdiff_bench.pipelines import load_model


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_embedded_and_saved_elsewhere_are_one_path(tmp_path: Path) -> None:
    embedded = load_model("sd3")
    assert embedded.title == "sd3 (embedded, 3.5 M)"
    embedded.pipeline.save_pretrained(tmp_path / "copy")
    copy = load_model("sd3", weights=str(tmp_path / "copy"))
    results = []
    for loaded in (embedded, copy):
        stepwise = loaded.stepwise(steps=3, guidance=4.0)
        noise = initial_noise([("a", 0)], stepwise.latent_shape)
        state, conditioning = stepwise.initial_state(noise), stepwise.encode(["a red circle"])
        for step in range(3):
            state = stepwise.step(state, step, stepwise.denoiser, conditioning)
        results.append(state.latents)
    assert torch.equal(*results)
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


@pytest.mark.parametrize("weights", ["no/such-repository", "./absent folder", "absent"])
def test_absent_weights_name_both_ways_out(weights: str) -> None:
    with pytest.raises(UsageError, match="neither a local folder nor a reachable hub") as caught:
        load_model("sd3", weights=weights)
    assert "--weights embedded" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no model_index"):
        load_model("sd3", weights=str(tmp_path))
    index = tmp_path / "model_index.json"
    index.write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(UsageError, match="holds a FluxPipeline, but --model sd3 takes a Stable"):
        load_model("sd3", weights=str(tmp_path))
    index.write_text(json.dumps({"_class_name": "StableDiffusion3Pipeline"}))
    (tmp_path / "model.bin").write_bytes(b"pickle")
    with pytest.raises(UsageError, match="no safetensors weights; pickled weights are not loaded"):
        load_model("sd3", weights=str(tmp_path))
