"""Loading in stages: text encoders first, freed before network and VAE come; dtypes and tiles."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.levels import LevelBank
from tmpdiff_bench.noise import initial_noise
from tmpdiff_bench.pipelines import MODELS, LoadedModel, load_model
from tmpdiff_bench.pipelines.parts import LATER, PartSizes, part_sizes
from tmpdiff_bench.zoo.evaluation import own_arguments

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS = ["a red circle", "two blue stars"]


@pytest.fixture(scope="module")
def saved(
    untrained: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The folder of an untrained pipeline, by family."""
    root = tmp_path_factory.mktemp("saved")

    def folder(family: str) -> Path:
        if not (root / family).exists():
            untrained(family).save_pretrained(root / family)
        return root / family

    return folder


def final(loaded: LoadedModel) -> torch.Tensor:
    """Latents after two steps, the encoders being freed after encoding."""
    stepwise = loaded.stepwise(steps=2, guidance=4.0)
    conditioning = stepwise.encode(PROMPTS)
    stepwise.free_text_encoders()
    state = stepwise.initial_state(initial_noise([("a", 0), ("b", 0)], stepwise.latent_shape))
    for step in range(2):
        state = stepwise.step(state, step, stepwise.denoiser, conditioning)
    return state.latents


def bytes_of(part: Any) -> int:
    return sum(t.nbytes for t in {t.data_ptr(): t for t in part.state_dict().values()}.values())


@pytest.mark.parametrize("family", MODELS)
def test_encoders_are_gone_before_the_network_comes(
    family: str, saved: Callable[[str], Path]
) -> None:
    loaded = load_model(family, weights=str(saved(family)), staged=True)
    parts = loaded.pipeline.components
    encoders = [weakref.ref(part) for name, part in parts.items() if name.startswith("text_enc")]
    del parts
    stepwise: Any = loaded.stepwise(steps=2, guidance=4.0)
    assert {p.device.type for p in stepwise.denoiser.parameters()} == {"meta"}
    assert {p.device.type for p in loaded.pipeline.vae.parameters()} == {"meta"}
    stepwise.encode(PROMPTS)
    present: list[object] = []

    def rest() -> dict[str, Any]:
        gc.collect()
        present.extend(encoder() for encoder in encoders)
        assert loaded.rest is not None
        return loaded.rest()

    stepwise._rest = rest
    stepwise.free_text_encoders()
    assert present == [None] * len(encoders)
    assert {p.device.type for p in stepwise.denoiser.parameters()} == {"cpu"}
    with pytest.raises(UsageError, match="text encoders have been freed"):
        stepwise.encode(PROMPTS)


@pytest.mark.parametrize("family", MODELS)
def test_stages_change_no_number(family: str, saved: Callable[[str], Path]) -> None:
    weights = str(saved(family))
    whole, staged = (load_model(family, weights=weights, staged=s) for s in (False, True))
    assert whole.title == staged.title
    assert torch.equal(final(whole), final(staged))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("family", MODELS)
def test_sizes_are_told_before_and_are_those_of_the_parts(
    family: str, dtype: str, saved: Callable[[str], Path]
) -> None:
    told: list[PartSizes] = []
    weights = str(saved(family))
    loaded = load_model(family, weights=weights, dtype=dtype, announce=told.append)
    sizes = {name: bytes_of(getattr(loaded.pipeline, name)) for name in told[0].parts}
    assert told[0].parts == sizes
    later = sum(size for name, size in sizes.items() if name in LATER)
    assert told[0].most == max(later, sum(sizes.values()) - later)
    assert list(told[0].parts)[-1] == "vae"


def test_damaged_headers_are_named(saved: Callable[[str], Path], tmp_path: Path) -> None:
    part = tmp_path / "vae"
    part.mkdir()
    (tmp_path / "model_index.json").write_text('{"vae": ["diffusers", "AutoencoderKL"]}')
    for content in (b"", b"\xff" * 16, b"\x02" + bytes(7) + b"[]"):
        (part / "diffusion_pytorch_model.safetensors").write_bytes(content)
        with pytest.raises(UsageError, match="no safetensors file, or damaged"):
            part_sizes(tmp_path, torch.float32)


@pytest.mark.parametrize("family", MODELS)
def test_bf16_is_the_pipelines_own_call(family: str, saved: Callable[[str], Path]) -> None:
    """The same operations on the same batch, so the difference is that of kernels alone."""
    loaded = load_model(family, weights=str(saved(family)), dtype="bf16")
    stepwise = loaded.stepwise(steps=2, guidance=4.0)
    noise = initial_noise([("a", 0), ("b", 0)], stepwise.latent_shape).bfloat16()
    expected = loaded.pipeline(
        PROMPTS,
        num_inference_steps=2,
        output_type="latent",
        **own_arguments(loaded.pipeline, noise.clone(), 4.0),
    ).images
    if expected.ndim == 3:  # flux gives latents as it packs them
        expected = loaded.pipeline._unpack_latents(expected, 64, 64, 4)
    found = final(loaded)
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().max() <= 0.02 * expected.abs().max()
    images = stepwise.decode(found.float())
    assert images.dtype == torch.float32
    assert images.isfinite().all()


def test_the_dtype_of_the_model_is_a_reference_that_takes_nothing() -> None:
    stepwise = load_model("sd3", dtype="bf16").stepwise(steps=1, guidance=1.0)
    levels = ("bf16", "w4a4")
    takes = LevelBank.memory(stepwise.denoiser, levels, stepwise.quantized)
    assert set(takes.own) == {"w4a4"}
    bank = LevelBank(stepwise.denoiser, levels, stepwise.quantized)
    assert bank["bf16"] is stepwise.denoiser
    assert {p.dtype for p in bank["w4a4"].parameters()} == {torch.bfloat16}


def test_tiles_bound_what_the_decoder_sees() -> None:
    whole, tiled = load_model("sd3"), load_model("sd3", vae_tile=32)
    seen: list[int] = []
    tiled.pipeline.vae.decoder.register_forward_pre_hook(
        lambda _, inputs: seen.append(max(inputs[0].shape[-2:]))
    )
    latents = initial_noise([("a", 0)], (4, 16, 16))
    images = [m.stepwise(steps=1, guidance=1.0).decode(latents) for m in (whole, tiled)]
    assert max(seen) == 8
    assert images[0].shape == images[1].shape
    assert 0 < (images[0] - images[1]).abs().mean() < 0.1
    with pytest.raises(UsageError, match="multiples of 4 from 16, and images are 64 pixels a side"):
        load_model("sd3", vae_tile=64)


def test_large_images_are_decoded_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    stepwise = load_model("sd3").stepwise(steps=1, guidance=1.0)
    latents = initial_noise([("a", 0), ("b", 0), ("c", 0)], stepwise.latent_shape)
    together = stepwise.decode(latents)
    monkeypatch.setattr("tmpdiff_bench.pipelines.guided._DECODED_TOGETHER", 32)
    rows: list[int] = []
    vae: Any = load_model("sd3").pipeline.vae
    monkeypatch.setattr(stepwise, "pipeline", _Counting(vae, rows))
    assert torch.allclose(stepwise.decode(latents), together, atol=1e-5)
    assert rows == [1, 1, 1]


class _Counting:
    """A pipeline whose VAE notes how many images it decodes at a time."""

    vae_scale_factor = 4

    def __init__(self, vae: Any, rows: list[int]) -> None:
        self.vae, self._decode, self._rows = vae, vae.decode, rows
        vae.decode = self._noting

    def _noting(self, latents: torch.Tensor, **options: Any) -> Any:
        self._rows.append(len(latents))
        return self._decode(latents, **options)
