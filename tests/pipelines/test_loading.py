"""Weights: the embedded ones, folders of any class, the hub's cache, pipelines in memory; staged
loading; and clear errors for all else.
"""

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
from huggingface_hub.errors import GatedRepoError
from torch import Tensor

from tests.tiny import TINY, WARNINGS
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.pipelines import MODELS, embedded_models, load_pipeline
from tmpdiff_bench.pipelines.calls import Call, free_text_encoders
from tmpdiff_bench.pipelines.digests import weights_digest
from tmpdiff_bench.pipelines.embedded import call_defaults, model_folder
from tmpdiff_bench.pipelines.loading import LoadedModel
from tmpdiff_bench.pipelines.parts import PartSizes, placeholders, weight_files
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.trajectory.engine import PrefixEngine, level_banks

pytestmark = [pytest.mark.filterwarnings(text) for text in WARNINGS]

CLASSES = (
    "StableDiffusion3Pipeline",
    "FluxImg2ImgPipeline",
    "QwenImagePipeline",
    "StableDiffusionPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionXLPipeline",
    "WanPipeline-two-experts",
    "HunyuanVideoPipeline",
    "TextToVideoSDPipeline",
)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny pipeline, by name; not to be written to."""
    root = tmp_path_factory.mktemp("saved")

    def folder(name: str) -> Path:
        if not (root / name).exists():
            TINY[name].build().save_pretrained(root / name)
        return root / name

    return folder


def call_of(name: str) -> Call:
    """Two samples of a tiny pipeline, two steps."""
    tiny = TINY[name]
    return Call({**tiny.call, "num_inference_steps": 2}, tiny.each(2), (3, 4))


@torch.no_grad()
def drawn(pipe: Any, name: str) -> Tensor:
    arguments = call_of(name).rows((0, 1)).arguments()
    found: Tensor = pipe(**arguments, output_type="latent", return_dict=False)[0]
    return found


def refusal(**options: Any) -> str:
    """What is said of options, in one line."""
    with pytest.raises(UsageError) as caught:
        load_pipeline(**options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_embedded_and_saved_elsewhere_are_one_path(tmp_path: Path) -> None:
    embedded = load_pipeline("sd3")
    assert embedded.title == "sd3 (embedded, 3.5 M)"
    assert embedded.digest == weights_digest(model_folder("sd3"))
    assert embedded.defaults == call_defaults("sd3")
    embedded.pipeline.save_pretrained(tmp_path / "copy")
    copy = load_pipeline("sd3", weights=tmp_path / "copy")
    assert copy.defaults == {}, "those of the pipeline"
    assert embedded.digest != copy.digest, "saved in another dtype: other files"
    images = [loaded_image(loaded, embedded.defaults) for loaded in (embedded, copy)]
    assert torch.equal(*images)


def loaded_image(loaded: LoadedModel, arguments: dict[str, Any]) -> Tensor:
    call = Call({**arguments, "num_inference_steps": 2}, {"prompt": ["a red circle"]}, (0,))
    image: Tensor = loaded.pipeline(**call.rows((0,)).arguments(), output_type="pt").images
    return image


@pytest.mark.parametrize("model", MODELS)
def test_embedded_models_draw_64_pixels_by_their_defaults(model: str) -> None:
    assert embedded_models() == MODELS
    loaded = load_pipeline(model)
    assert loaded_image(loaded, loaded.defaults).shape == (1, 3, 64, 64)


@pytest.mark.parametrize("name", CLASSES)
def test_a_folder_of_any_class_staged_or_not(name: str, saved: Callable[[str], Path]) -> None:
    """The class is read from the folder; what comes later changes no number."""
    told: list[PartSizes] = []
    whole = load_pipeline(weights=saved(name))
    staged = load_pipeline(weights=str(saved(name)), staged=True, announce=told.append)
    assert type(whole.pipeline).__name__ == name.partition("-")[0]
    assert whole.name == name
    assert (staged.title, staged.digest) == (whole.title, whole.digest)
    assert staged.later is not None
    assert set(told[0].later) < set(told[0].parts)
    for part in told[0].later:
        for parameter in getattr(staged.pipeline, part).parameters():
            assert parameter.isnan().all(), "what is computed from it by mistake shows"
            assert parameter.untyped_storage().nbytes() == 4
    staged.complete()
    assert staged.later is None
    expected = drawn(TINY[name].build(), name)
    assert torch.equal(drawn(whole.pipeline, name), expected)
    assert torch.equal(drawn(staged.pipeline, name), expected)


@pytest.mark.parametrize("name", ["StableDiffusion3Img2ImgPipeline", "WanPipeline-two-experts"])
def test_text_encoders_are_gone_before_denoisers_come(
    name: str, saved: Callable[[str], Path]
) -> None:
    """As the recorder does it: encoded, freed, completed; bit for bit a run of the whole."""
    staged, whole = (load_pipeline(weights=saved(name), staged=s) for s in (True, False))
    call, memos = call_of(name), dict[Any, Any]()
    PrefixEngine(staged.pipeline, {}, call, max_batch=2, memos=memos).encode()
    free_text_encoders(staged.pipeline)
    encoder = staged.pipeline.text_encoder
    assert sum(t.untyped_storage().nbytes() for t in encoder.parameters()) == 0
    staged.complete()
    banks = level_banks(staged.pipeline, ("fp32", "w4a4"))
    engine = PrefixEngine(staged.pipeline, banks, call, max_batch=2, memos=memos)
    steps = engine.schedule.steps if engine.schedule else 2
    final = engine.evaluate([PrecisionPlan.uniform("fp32", steps)])[0]
    assert torch.equal(final, drawn(whole.pipeline, name))


def test_what_is_not_loaded_in_stages(saved: Callable[[str], Path], tmp_path: Path) -> None:
    """Nothing to free first; weights that are quantized; a LoRA that needs the denoiser."""
    assert load_pipeline(weights=saved("DiTPipeline"), staged=True).later is None
    folder = tmp_path / "quantized"
    shutil.copytree(saved("FluxPipeline"), folder)
    parts = weight_files(folder)
    assert set(placeholders(folder, parts, torch.float32, torch.device("cpu"))) == {"transformer"}
    config = folder / "transformer" / "config.json"
    content = {**json.loads(config.read_text()), "quantization_config": {"quant_method": "any"}}
    config.write_text(json.dumps(content))
    assert placeholders(folder, parts, torch.float32, torch.device("cpu")) == {}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("StableDiffusion3Pipeline", "fp32"),
        ("StableDiffusion3Pipeline", "bfloat16"),
        ("WanPipeline-two-experts", "fp32"),
    ],
)
def test_sizes_are_told_before_and_are_those_of_the_parts(
    name: str, dtype: str, saved: Callable[[str], Path]
) -> None:
    told: list[PartSizes] = []
    for staged in (False, True):
        loaded = load_pipeline(
            weights=saved(name), dtype=dtype, staged=staged, announce=told.append
        )
    loaded.complete()
    whole, sizes = told
    assert sizes.parts == {part: bytes_of(getattr(loaded.pipeline, part)) for part in sizes.parts}
    total = sum(sizes.parts.values())
    encoders = sum(size for part, size in sizes.parts.items() if part.startswith("text_encoder"))
    later = sum(sizes.parts[part] for part in sizes.later)
    assert sizes.most == max(total - later, total - encoders) < whole.most == total
    assert "text encoders run first and are freed" in str(sizes)
    assert "freed" not in str(whole)


def bytes_of(part: Any) -> int:
    return sum(t.nbytes for t in {t.data_ptr(): t for t in part.state_dict().values()}.values())


def test_the_digest_is_of_the_weights(saved: Callable[[str], Path], tmp_path: Path) -> None:
    """The same saved twice has the same; one changed bit has another."""
    before = load_pipeline(weights=saved("FluxPipeline")).digest
    TINY["FluxPipeline"].build().save_pretrained(tmp_path)
    assert load_pipeline(weights=tmp_path).digest == before
    path = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert load_pipeline(weights=tmp_path).digest != before


def test_variants(saved: Callable[[str], Path], tmp_path: Path) -> None:
    pipe = TINY["StableDiffusionPipeline"].build()
    pipe.save_pretrained(tmp_path, variant="fp16")
    assert "fp16.safetensors alone: name the variant" in refusal(weights=tmp_path)
    found = load_pipeline(weights=tmp_path, variant="fp16", staged=True)
    found.complete()
    name = "StableDiffusionPipeline"
    assert torch.equal(drawn(found.pipeline, name), drawn(pipe, name))
    pipe.to(torch.float16).to(torch.float32).save_pretrained(tmp_path)  # beside the others
    both = [load_pipeline(weights=tmp_path, variant=v) for v in ("fp16", None)]
    assert both[0].digest != both[1].digest
    assert not torch.equal(*(drawn(loaded.pipeline, name) for loaded in both))
    assert "no weights of the variant 'fp8'" in refusal(weights=saved(name), variant="fp8")


def test_wrong_values_are_named(saved: Callable[[str], Path]) -> None:
    assert "unknown model 'sd4': did you mean 'sd3'" in refusal(model="sd4")
    assert "name an embedded model (sd3, flux, pixart, sdxl) or other" in refusal()
    assert "device 'cuda:77' is not available here" in refusal(model="sd3", device="cuda:77")
    assert "device 'gpu' is not available here" in refusal(model="sd3", device="gpu")
    assert "unknown dtype 'fp61': did you mean 'fp16'" in refusal(model="sd3", dtype="fp61")
    assert "revision 'main' is of a hub id" in refusal(model="sd3", revision="main")
    folder = saved("FluxPipeline")
    said = refusal(model="sd3", weights=folder)
    assert "holds a FluxPipeline, but --model sd3 takes a StableDiffusion3Pipeline" in said
    assert load_pipeline("mine", weights=folder).name == "mine", "any other name is a label"


@pytest.mark.parametrize("weights", ["no/such-repository", "./absent folder", "absent"])
def test_absent_weights_name_both_ways_out(weights: str) -> None:
    said = refusal(model="flux", weights=weights)
    assert "neither a local folder nor a reachable hub" in said
    assert "--weights embedded" in said


def test_what_diffusers_says_of_an_absent_hub_is_not_said_besides() -> None:
    handler = BufferingHandler(100)
    logger = logging.getLogger("diffusers")
    before = logger.level
    logger.addHandler(handler)
    try:
        refusal(weights="no/such-repository")
    finally:
        logger.removeHandler(handler)
    assert handler.buffer == []
    assert logger.level == before


def test_other_folders_are_refused(saved: Callable[[str], Path], tmp_path: Path) -> None:
    assert "no model_index" in refusal(weights=tmp_path)
    index = tmp_path / "model_index.json"
    for content, said in (("", "can't be read"), ("[]", "no object"), ("\x00", "can't be read")):
        index.write_text(content)
        told = refusal(weights=tmp_path)
        assert "model_index.json" in told
        assert said in told
    index.write_text(json.dumps({"_class_name": "FluxPipeline", "vae": ["diffusers", "V"]}))
    assert "no weights of a denoiser" in refusal(weights=tmp_path)
    shutil.copytree(saved("FluxPipeline"), tmp_path, dirs_exist_ok=True)
    index.write_text(index.read_text().replace("FluxTransformer2DModel", "FluxTransformerModel"))
    assert "can't be loaded as a pipeline: " in refusal(weights=tmp_path)


@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline", "StableDiffusionPipeline"])
def test_pickled_parts_are_refused(name: str, saved: Callable[[str], Path], tmp_path: Path) -> None:
    """One component without safetensors among others that have them."""
    shutil.copytree(saved(name), tmp_path, dirs_exist_ok=True)
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert "no file named diffusion_pytorch_model.safetensors" in refusal(weights=tmp_path)
    (tmp_path / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    assert "vae has no safetensors weights; pickled" in refusal(weights=tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff" * 16, b"\x02" + bytes(7) + b"[]"])
def test_damaged_weights_are_named(
    content: bytes, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(saved("FluxPipeline"), tmp_path, dirs_exist_ok=True)
    path = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(content)
    assert f"{path} is no safetensors file, or damaged" in refusal(weights=tmp_path)


def test_the_hubs_cache(
    saved: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same files where the hub's client keeps them."""
    name = "StableDiffusionXLPipeline"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    in_hub_cache(saved(name), tmp_path, "someone/tiny", revision="v1")
    cached = load_pipeline(weights="someone/tiny", revision="v1")
    folder = load_pipeline(weights=saved(name))
    assert (cached.name, cached.digest) == ("tiny", folder.digest)
    assert cached.title.startswith("tiny (someone/tiny, ")
    assert torch.equal(drawn(cached.pipeline, name), drawn(folder.pipeline, name))
    hub = {"weights": "someone/tiny"}
    assert "neither a local folder nor a reachable hub" in refusal(**hub, revision="v2")
    assert "but --model flux takes a" in refusal(model="flux", **hub, revision="v1")


def in_hub_cache(source: Path, cache: Path, repository: str, *, revision: str) -> None:
    """Lay files out as the hub's client keeps a downloaded repository."""
    commit = "0" * 40
    folder = cache / f"models--{repository.replace('/', '--')}"
    shutil.copytree(source, folder / "snapshots" / commit)
    reference = folder / "refs" / revision
    reference.parent.mkdir(parents=True)
    reference.write_text(commit)


def test_gated_weights_say_how_to_log_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> str:
        answer: Any = SimpleNamespace(headers={}, request=None)
        raise GatedRepoError("Access to this model is restricted.", response=answer)

    monkeypatch.setattr("diffusers.DiffusionPipeline.download", refused)
    said = refusal(weights="someone/gated")
    assert "hf auth login" in said
    assert "restricted" in said


def test_a_pipeline_is_taken_as_it_is() -> None:
    pipe = TINY["FluxPipeline"].build().to(torch.bfloat16)
    loaded = load_pipeline(weights=pipe)
    assert loaded.pipeline is pipe
    assert loaded.title == "Flux (in memory, 0.1 M)"
    assert loaded.device == torch.device("cpu")
    assert load_pipeline("flux", weights=pipe, dtype="bf16").name == "flux"
    assert "but --model sd3 takes a" in refusal(model="sd3", weights=pipe)
    changes: dict[str, Any] = {
        "revision": "main",
        "variant": "fp16",
        "scheduler": "DDIMScheduler",
        "lora": "a.safetensors",
        "vae_tile": 8,
        "dtype": "fp16",
    }
    for name, value in changes.items():
        assert f"{name}=" in refusal(weights=pipe, **{name: value})
    assert "int has no denoiser" in refusal(weights=5)
