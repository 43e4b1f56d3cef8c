"""What tells two pipelines in memory apart."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from peft import LoraConfig
from torchao.quantization import Int8WeightOnlyConfig, quantize_

from tests.tiny import TINY, WARNINGS
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.pipelines.digests import file_digest, pipeline_digest

pytestmark = [pytest.mark.filterwarnings(text) for text in WARNINGS]

NAME = "StableDiffusionPipeline"


def add_lora(pipe: Any, scale: float) -> None:
    torch.manual_seed(0)
    config = LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q"])
    pipe.unet.add_adapter(config, adapter_name="mine")
    pipe.unet.set_adapters(["mine"], [scale])


def one_bit(pipe: Any) -> None:
    with torch.no_grad():
        pipe.text_encoder.embeddings.token_embedding.weight.view(torch.int32)[0, 0] ^= 1


def one_buffer(pipe: Any) -> None:
    buffer = pipe.text_encoder.embeddings.position_ids
    assert "embeddings.position_ids" not in pipe.text_encoder.state_dict()
    buffer[0, 0] += 1


def other_scheduler(pipe: Any) -> None:
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)


def other_setting(pipe: Any) -> None:
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, steps_offset=7)


def other_word(pipe: Any) -> None:
    pipe.tokenizer.add_tokens(["<mine>"])


CHANGES: dict[str, Callable[[Any], Any]] = {
    "dtype": lambda pipe: pipe.to(torch.bfloat16),
    "bit": one_bit,
    "buffer": one_buffer,
    "scheduler": other_scheduler,
    "setting": other_setting,
    "word": other_word,
    "module": lambda pipe: pipe.register_modules(vae=None),
    "own attribute": lambda pipe: setattr(pipe, "vae_scale_factor", 4),
    "own setting": lambda pipe: pipe.register_to_config(requires_safety_checker=True),
    "LoRA": lambda pipe: add_lora(pipe, 1.0),
    "scale of a LoRA": lambda pipe: add_lora(pipe, 0.5),
}


@pytest.fixture(scope="module")
def digest() -> str:
    return pipeline_digest(TINY[NAME].build())


def test_the_same_pipeline_has_the_same_digest_in_another_process(digest: str) -> None:
    """No address and no order of a set is in it."""
    program = (
        "from tests.tiny import TINY\n"
        "from tmpdiff_bench.pipelines.digests import pipeline_digest\n"
        f"print(pipeline_digest(TINY[{NAME!r}].build()))"
    )
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    assert ran.stdout.split()[-1] == digest


def test_everything_that_changes_a_number_changes_it(digest: str) -> None:
    found = {"none": digest}
    for name, change in CHANGES.items():
        pipe = TINY[NAME].build()
        change(pipe)
        found[name] = pipeline_digest(pipe)
    assert len(set(found.values())) == len(CHANGES) + 1, json.dumps(found, indent=1)


def test_drawing_changes_nothing(digest: str) -> None:
    pipe = TINY[NAME].build()
    pipe(**TINY[NAME].call, **TINY[NAME].each(1), num_inference_steps=1, output_type="latent")
    assert pipeline_digest(pipe) == digest


def test_quantized_tensors_are_read_by_what_they_hold() -> None:
    found = []
    for factor in (1, 1, 2):
        pipe = TINY[NAME].build()
        with torch.no_grad():  # another scale for the same codes
            block = pipe.unet.mid_block.attentions[0].transformer_blocks[0]
            block.attn1.to_q.weight.mul_(factor)
        quantize_(block, Int8WeightOnlyConfig(set_inductor_config=False))
        found.append(pipeline_digest(pipe))
    assert found[0] == found[1] != found[2]


def test_weights_that_are_elsewhere_are_named() -> None:
    pipe = TINY[NAME].build()
    pipe.unet.to("meta")
    with pytest.raises(UsageError, match=r"unet\.conv_in\.weight has no weights in memory"):
        pipeline_digest(pipe)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"can't read {tmp_path}: "):
        file_digest(tmp_path)
