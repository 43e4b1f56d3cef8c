"""Levels of the user's own: real quantized modules of torchao, bitsandbytes, GGUF and quanto, on
the embedded sd3, against calls in which the pipeline's transformer is replaced by hand.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes
import diffusers
import gguf
import pytest
import torch
from diffusers import GGUFQuantizationConfig, QuantoConfig, TorchAoConfig
from diffusers.models.attention_processor import JointAttnProcessor2_0
from torch import Tensor, nn
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig

import tmpdiff_bench as tb
from tests.deploy.test_adapters import save_lora
from tests.tiny import WARNINGS
from tmpdiff_bench import deploy
from tmpdiff_bench.costs import Cost, CostTable
from tmpdiff_bench.costs.isolation import Subject
from tmpdiff_bench.costs.subjects import runner
from tmpdiff_bench.deploy.__main__ import main
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.pipelines import load_pipeline
from tmpdiff_bench.pipelines.embedded import call_defaults
from tmpdiff_bench.plan import PrecisionPlan

# what quantizers warn of while they load is theirs: each has deprecations of its own
pytestmark = [pytest.mark.filterwarnings(entry) for entry in (*WARNINGS, "ignore")]

MIXED = PrecisionPlan.parse("fp32 mine fp32")
ALONE = PrecisionPlan.parse("mine*3")
QUANTIZED: Any = bitsandbytes.nn


def quantized_by(config: Callable[[], Any]) -> Callable[[Path], Any]:
    def load(folder: Path) -> Any:
        kind = diffusers.SD3Transformer2DModel
        return kind.from_pretrained(folder, quantization_config=config(), torch_dtype=torch.float32)

    return load


def bitsandbytes_int8(folder: Path) -> nn.Module:
    """Diffusers' own way asks for a GPU; the layers run on CPUs."""
    found = diffusers.SD3Transformer2DModel.from_pretrained(folder, torch_dtype=torch.float32)
    for block in found.transformer_blocks:
        for name in ("to_q", "to_k", "to_v"):
            old = getattr(block.attn, name)
            layer = QUANTIZED.Linear8bitLt(
                old.in_features, old.out_features, has_fp16_weights=False
            )
            layer.load_state_dict(old.state_dict())
            setattr(block.attn, name, layer.to("cpu"))
    return found


def bitsandbytes_nf4(folder: Path) -> nn.Module:
    found = diffusers.SD3Transformer2DModel.from_pretrained(folder, torch_dtype=torch.float32)
    for block in found.transformer_blocks:
        old = block.ff.net[2]
        layer = QUANTIZED.Linear4bit(
            old.in_features, old.out_features, compute_dtype=torch.float32, quant_type="nf4"
        )
        layer.load_state_dict(old.state_dict())
        block.ff.net[2] = layer.to("cpu")
    return found


def written_gguf(folder: Path) -> Path:
    """The transformer in a folder as a GGUF file."""
    found = diffusers.SD3Transformer2DModel.from_pretrained(folder, torch_dtype=torch.float32)
    path = folder.with_name("mine.gguf")
    writer = gguf.GGUFWriter(path, "sd3")
    for key, tensor in found.state_dict().items():
        array = tensor.numpy()
        if array.ndim == 2 and array.shape[1] % 32 == 0 and "blocks" in key:
            q8 = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(key, gguf.quantize(array, q8), raw_dtype=q8)
        else:
            writer.add_tensor(key, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def from_gguf(folder: Path) -> Any:
    return diffusers.SD3Transformer2DModel.from_single_file(
        str(written_gguf(folder)),
        config=str(folder),
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32),
        torch_dtype=torch.float32,
    )


MAKERS: dict[str, Callable[[Path], Any]] = {
    "torchao int8 weights": quantized_by(lambda: TorchAoConfig(Int8WeightOnlyConfig())),
    "torchao int8 dynamic": quantized_by(
        lambda: TorchAoConfig(Int8DynamicActivationInt8WeightConfig())
    ),
    "quanto int8": quantized_by(lambda: QuantoConfig(weights_dtype="int8")),
    "bitsandbytes int8": bitsandbytes_int8,
    "bitsandbytes nf4": bitsandbytes_nf4,
    "gguf q8_0": from_gguf,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded sd3's transformer, in a folder."""
    folder = tmp_path_factory.mktemp("own") / "transformer"
    load_pipeline("sd3").pipeline.transformer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(saved: Path) -> Callable[[str], Any]:
    """Quantized modules by name, made once."""
    found: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in found:
            found[name] = MAKERS[name](saved).eval()
        return found[name]

    return get


@pytest.fixture
def pipe() -> Any:
    return load_pipeline("sd3").pipeline


def draw(pipe: Any, **options: Any) -> Tensor:
    options = {"generator": torch.Generator().manual_seed(0), **options}
    found: Tensor = pipe(
        "a red circle",
        num_inference_steps=3,
        output_type="latent",
        return_dict=False,
        **options,
    )[0]
    return found


def by_hand(pipe: Any, plan: PrecisionPlan, modules: dict[str, Any], **options: Any) -> Tensor:
    """The transformer replaced between steps."""
    levels = {"fp32": pipe.transformer, **modules}
    own = pipe.transformer

    def next_step(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        pipe.transformer = levels[plan[min(step + 1, len(plan) - 1)]]
        return kwargs

    pipe.transformer = levels[plan[0]]
    try:
        return draw(pipe, callback_on_step_end=next_step, **options)
    finally:
        pipe.transformer = own


@pytest.mark.parametrize("name", MAKERS)
def test_a_plan_with_a_quantized_module_is_the_call_by_hand(
    pipe: Any, made: Callable[[str], Any], name: str
) -> None:
    module = made(name)
    for plan in (MIXED, ALONE):
        expected = by_hand(pipe, plan, {"mine": module})
        deploy.apply(pipe, plan, modules={"mine": module})
        assert torch.equal(draw(pipe), expected)
        assert " layers exchanged" in deploy.describe(pipe)
        deploy.remove(pipe)
    assert not torch.equal(expected, draw(pipe))


def test_recorded_singles_are_the_calls_by_hand(
    saved: Path, made: Callable[[str], Any], tmp_path: Path
) -> None:
    """Two levels of the user's own, one of a file, and none that is simulated."""
    given = {"dynamic": made("torchao int8 dynamic"), "file": str(written_gguf(saved))}
    experiment = tb.Experiment(
        "sd3",
        modules=given,
        steps=3,
        prompts=["a red circle"],
        num_seeds=1,
        max_batch=1,
        joint_plans=0,
        plans=(PrecisionPlan.parse("dynamic file fp32"),),
        call={"guidance_scale": 2.0},
    )
    assert experiment.levels == ("fp32", "dynamic", "file")
    found = tb.record(experiment, tmp_path / "recording")
    pipe, seed = load_pipeline("sd3").pipeline, found.manifest["workload"]["generator_seeds"][0]
    modules = {"dynamic": given["dynamic"], "file": from_gguf(saved)}

    def drawn(plan: str) -> Tensor:
        options = {
            **call_defaults("sd3"),
            "guidance_scale": 2.0,
            "generator": torch.Generator().manual_seed(seed),
        }
        return by_hand(pipe, PrecisionPlan.parse(plan), modules, **options).flatten(1)

    reference = drawn("fp32*3")
    assert torch.equal(torch.from_numpy(found.reference), reference)
    for level, singles in zip(experiment.levels[1:], found.singles, strict=True):
        for step, single in enumerate(singles):
            plan = " ".join(level if other == step else "fp32" for other in range(3))
            assert torch.equal(torch.from_numpy(single), drawn(plan) - reference)
    joint = torch.from_numpy(found.joint[0])
    assert torch.equal(joint, drawn("dynamic file fp32") - reference)


class Bent(diffusers.SD3Transformer2DModel):  # type: ignore[misc]  # diffusers has no types
    """A class of its own: nothing of it can be exchanged layer by layer."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        first, *others = super().forward(*args, **kwargs)
        return (first * 0.9, *others)


@pytest.fixture(scope="module")
def bent(saved: Path) -> nn.Module:
    found: nn.Module = Bent.from_pretrained(saved, torch_dtype=torch.float32).eval()
    return found


def test_a_module_of_another_make_runs_as_a_whole(pipe: Any, bent: nn.Module) -> None:
    expected, untouched = by_hand(pipe, MIXED, {"mine": bent}), draw(pipe)
    deploy.apply(pipe, MIXED, modules={"mine": bent})
    assert torch.equal(draw(pipe), expected)
    assert "mine as a whole: the denoiser is a Bent there" in deploy.describe(pipe)
    deploy.remove(pipe)
    assert torch.equal(draw(pipe), untouched)


@pytest.mark.parametrize(
    "change",
    [
        lambda pipe: pipe.transformer.set_attn_processor(JointAttnProcessor2_0()),
        lambda pipe: pipe.transformer.transformer_blocks[0].register_forward_hook(lambda *_: None),
        lambda pipe: setattr(pipe.transformer.transformer_blocks[1], "mine", 2),
        lambda pipe: pipe.transformer.proj_out.weight.data.add_(1),
    ],
    ids=["processors", "hook", "attribute", "weights"],
)
def test_a_whole_module_follows_no_change(
    pipe: Any, bent: nn.Module, change: Callable[[Any], Any]
) -> None:
    """Nothing is drawn that isn't what was asked for; what is applied anew counts from there."""
    deploy.apply(pipe, MIXED, modules={"mine": bent})
    draw(pipe)
    change(pipe)
    with pytest.raises(UsageError, match="the transformer was changed since the plan was applied"):
        draw(pipe)


def test_a_whole_module_passes_no_hook_by(pipe: Any, bent: nn.Module) -> None:
    pipe.transformer.transformer_blocks[0].register_forward_hook(lambda *_: None)
    with pytest.raises(UsageError, match=r"by a hook of the transformer \(transformer_blocks.0\)"):
        deploy.apply(pipe, MIXED, modules={"mine": bent})


def test_exchanged_layers_follow_hooks_and_adapters_and_refuse_written_weights(
    pipe: Any, made: Callable[[str], Any], tmp_path: Path
) -> None:
    module = made("torchao int8 weights")
    lora = save_lora(pipe, tmp_path)
    deploy.apply(pipe, ALONE, modules={"mine": module})
    plain, seen = draw(pipe), []
    to_q = pipe.transformer.transformer_blocks[0].attn.to_q
    handle = to_q.register_forward_hook(lambda layer, args, output: seen.append(layer))
    assert torch.equal(draw(pipe), plain)
    assert seen[0] is to_q
    handle.remove()
    pipe.load_lora_weights(lora, adapter_name="a")
    adapted = draw(pipe)
    assert not torch.equal(adapted, plain)
    pipe.delete_adapters("a")
    assert torch.equal(draw(pipe), plain)
    to_q = pipe.transformer.transformer_blocks[0].attn.to_q
    getattr(to_q, "base_layer", to_q).weight.data.add_(1)
    with pytest.raises(UsageError, match="the transformer was changed since the plan was applied"):
        draw(pipe)
    deploy.apply(pipe, ALONE, modules={"mine": module})  # from here on it is what it is
    assert torch.equal(draw(pipe), plain)


def test_the_denoiser_itself_is_a_level_where_it_is_quantized(
    made: Callable[[str], Any], saved: Path
) -> None:
    quantized = made("torchao int8 weights")
    pipe = load_pipeline("sd3").pipeline
    float_module = pipe.transformer
    pipe.transformer = quantized
    with pytest.raises(UsageError, match="name the model as a level of your own"):
        deploy.apply(pipe, PrecisionPlan.parse("fp32*3"))
    plan = PrecisionPlan.parse("mine*2 other")
    expected = by_hand(pipe, plan, {"mine": quantized, "other": float_module})
    deploy.apply(pipe, plan, modules={"mine": quantized, "other": float_module})
    assert torch.equal(draw(pipe), expected)


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        ({"w8a8": "."}, "w8a8 is a level already"),
        ({"2nd": "."}, "'2nd' can't name a level"),
        ({"mine": 3}, "level mine is a int"),
        ({"mine": "no/where"}, "level mine: there is no no/where"),
        ({"mine": "pyproject.toml"}, "pyproject.toml is no .gguf file"),
        ({"mine": "docs"}, "docs is no folder that diffusers saved"),
        ({"mine": {"unet": "docs"}}, "unknown denoiser in level mine: 'unet'"),
    ],
)
def test_what_is_no_level(pipe: Any, modules: dict[str, Any], words: str) -> None:
    name = next(iter(modules))
    with pytest.raises(UsageError, match=words):
        deploy.apply(pipe, PrecisionPlan(("fp32", name, "fp32")), modules=modules)


def test_damaged_files_are_one_line(pipe: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"no gguf at all")
    with pytest.raises(UsageError, match=r"level mine: .*bad.gguf can't be loaded as a SD3Tran"):
        deploy.apply(pipe, MIXED, modules={"mine": tmp_path / "bad.gguf"})


def test_a_module_in_another_dtype_is_refused(pipe: Any) -> None:
    other = copy.deepcopy(pipe.transformer).bfloat16()
    with pytest.raises(
        UsageError, match="level mine computes in bfloat16, the pipeline in float32"
    ):
        deploy.apply(pipe, MIXED, modules={"mine": other})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"modules": {"mine": "."}, "levels": ("fp32", "w8a8")}, "mine=... is not among --levels"),
        ({"modules": {"mine": "."}, "quantized": ["a"]}, "--quantized has no effect"),
        ({"modules": {"w8a8": "."}, "levels": ("fp32", "w8a8")}, "w8a8 is a level already"),
    ],
)
def test_experiments_refuse(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        tb.Experiment("sd3", **options)


@pytest.fixture(scope="module")
def int8(saved: Path) -> Path:
    """A quantized folder, as diffusers saves it."""
    folder = saved.with_name("int8")
    MAKERS["torchao int8 weights"](saved).save_pretrained(folder)
    return folder


def test_a_quantized_folder_is_timed(int8: Path) -> None:
    loop = runner(Subject("sd3", ("fp32", "mine"), modules={"mine": str(int8)}, steps=2))
    assert loop.seconds(PrecisionPlan.parse("fp32 mine")) > 0
    with pytest.raises(UsageError, match="level mine: there is no nowhere"):
        runner(Subject("sd3", ("fp32", "mine"), modules={"mine": "nowhere"}))


def test_commands_take_them(int8: Path, tmp_path: Path, capsys: Any) -> None:
    """Allocated by what it costs, and applied."""
    mine = ["--level", f"mine={int8}"]
    times = {"fp32": Cost(2.0), "mine": Cost(1.0)}
    table = CostTable("measured-mine", "measured", "sd3", "here", times).save(tmp_path)
    plan, picture = tmp_path / "plan.json", tmp_path / "a.png"
    small = ["--model", "sd3", "--steps", "3", "--num-prompts", "2", "--metrics", "latent_rmse"]
    wanted = ["--speedup", "1.2", "--out", str(plan)]
    main(["allocate", *small, *mine, *wanted, "--costs", str(table)])
    assert "mine" in PrecisionPlan.from_json(plan.read_text())
    with pytest.raises(UsageError, match="mine is a level of your own, whose bits are not known"):
        main(["allocate", "--recording", str(tmp_path / "plan-recording"), *wanted])
    drawn = ["--prompt", "a circle", "--out", str(picture), "--repeats", "1"]
    main(["apply", str(plan), *mine, *drawn])
    assert "measured speedup" in capsys.readouterr().out
    assert picture.is_file()
    with pytest.raises(UsageError, match="unknown level 'mine'"):
        main(["apply", str(plan), *drawn])
    with pytest.raises(UsageError, match=r"--level idle=... has no effect"):
        main(["apply", str(plan), *mine, "--level", f"idle={int8}", *drawn])
