"""Parts that the tiny pipelines share: the registry, tokenizers, text encoders, VAEs, samples."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from tmpdiff_bench.zoo.text import corpus, train_clip_tokenizer, train_t5_tokenizer

CLIP_WIDTH, T5_WIDTH, LLM_WIDTH = 32, 64, 32
SIZE = 16  # pixels a side, 8 x 8 latents
_DENOISERS = ("transformer", "unet", "prior", "decoder", "controlnet", "adapter")
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<|im_start|>", "<|im_end|>", "<|endoftext|>")

# entries of filterwarnings: what others' code warns of when these pipelines are built and called
WARNINGS = (
    # diffusers 0.42 converts tensors in ways that NumPy 2 deprecates
    "ignore:__array__ implementation:DeprecationWarning",
    "ignore:__array_wrap__ must accept:DeprecationWarning",
    "ignore:`FluxPosEmbed` is deprecated:FutureWarning",  # Chroma
    "ignore:.*weight_norm. is deprecated:FutureWarning",  # the VAE of sound
    "ignore:In CPU autocast:UserWarning",  # Mochi
)

Each = Callable[[int], dict[str, list[Any]]]


@dataclass(frozen=True)
class Tiny:
    """A tiny untrained pipeline, and how to call it."""

    name: str
    build: Callable[[], DiffusionPipeline]  # a fresh one each time, always of the same weights
    steps: int  # num_inference_steps to ask for
    call: Mapping[str, Any]  # further arguments that all samples share
    each: Each  # n -> per-sample arguments by name, n values each
    latent: bool = True  # whether output_type="latent" is accepted
    batches: bool = True  # whether it takes lists of prompts


TINY: dict[str, Tiny] = {}


def prompts(n: int) -> dict[str, list[Any]]:
    """Prompts, no two alike."""
    colours, shapes = ("red", "blue", "green", "yellow"), ("circle", "star", "square")
    return {"prompt": [f"a {colours[i % 4]} {shapes[i % 3]} {i // 12 or ''}" for i in range(n)]}


def images(n: int, *, size: int = SIZE, seed: int = 0) -> list[Image.Image]:
    """Images of noise, no two alike."""
    generator = np.random.default_rng(seed)
    shape = (n, size, size, 3)
    return [Image.fromarray(pixels) for pixels in generator.integers(0, 256, shape, np.uint8)]


def prompts_and(*names: str, size: int = SIZE) -> Each:
    """Samples of a prompt and an image under each of `names`."""

    def each(n: int) -> dict[str, list[Any]]:
        pictures = {name: images(n, size=size, seed=seed) for seed, name in enumerate(names)}
        return {**prompts(n), **pictures}

    return each


def tiny(
    name: str,
    *,
    steps: int = 4,
    each: Each = prompts,
    latent: bool = True,
    batches: bool = True,
    **call: Any,
) -> Callable[[Callable[[], DiffusionPipeline]], Callable[[], DiffusionPipeline]]:
    """Registers what builds the pipeline of this name; weights are random, but always the same."""

    def register(make: Callable[[], DiffusionPipeline]) -> Callable[[], DiffusionPipeline]:
        def build() -> DiffusionPipeline:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return finished(make())

        TINY[name] = Tiny(name, build, steps, call, each, latent, batches)
        return make

    return register


def finished(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """The pipeline, ready to draw, and nothing of its denoisers at zero, where training begins."""
    for name, module in pipeline.components.items():
        if not isinstance(module, nn.Module):
            continue
        module.float().eval().requires_grad_(False)
        if name.startswith(_DENOISERS):
            for key, parameter in module.named_parameters():
                if key.endswith("pad_token"):  # left as memory happened to be
                    nn.init.normal_(parameter)
                elif not parameter.any():
                    nn.init.normal_(parameter, std=0.05)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@cache
def texts() -> list[str]:
    """Captions to learn tokenizers from."""
    return corpus(200)


_clip_tokenizer = cache(lambda: train_clip_tokenizer(texts()))
_t5_tokenizer = cache(lambda: train_t5_tokenizer(texts()))


def clip_tokenizer() -> CLIPTokenizer:
    """One of its own for each pipeline, as of the other kinds: some pipelines change theirs."""
    return copy.deepcopy(_clip_tokenizer())


def t5_tokenizer() -> T5TokenizerFast:
    return copy.deepcopy(_t5_tokenizer())


def llm_tokenizer() -> PreTrainedTokenizerFast:
    return copy.deepcopy(_llm_tokenizer())


@cache
def _llm_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with a chat template, as large language models have."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=list(_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    learner.train_from_iterator(texts(), trainer)
    learner.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", _SPECIAL.index("<bos>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=learner,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        chat_template=_CHAT,
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
    )


def clip_config(**changes: Any) -> CLIPTextConfig:
    tokenizer = _clip_tokenizer()
    options = {
        "vocab_size": len(tokenizer),
        "hidden_size": CLIP_WIDTH,
        "intermediate_size": 64,
        "projection_dim": CLIP_WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CLIPTextConfig(**{**options, **changes})


def clip_encoder() -> CLIPTextModel:
    return CLIPTextModel(clip_config())


def clip_encoder_with_projection() -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(clip_config())


def t5_config() -> T5Config:
    tokenizer = _t5_tokenizer()
    return T5Config(
        vocab_size=len(tokenizer),
        d_model=T5_WIDTH,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def t5_encoder() -> T5EncoderModel:
    return T5EncoderModel(t5_config())


def llm_options(**changes: Any) -> dict[str, Any]:
    """Options that the configurations of decoder-only language models share."""
    tokenizer = _llm_tokenizer()
    options = {
        "vocab_size": len(tokenizer),
        "hidden_size": LLM_WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 1024,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    return {**options, **changes}


def vae(channels: int = 4, **changes: Any) -> AutoencoderKL:
    """A VAE that halves the sides."""
    options: dict[str, Any] = {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": channels,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": SIZE,
        "scaling_factor": 1.1,
    }
    return AutoencoderKL(**{**options, **changes})


def flow_vae(channels: int = 4) -> AutoencoderKL:
    """The VAE of flow-matching models, which shift latents."""
    return vae(channels, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False)
