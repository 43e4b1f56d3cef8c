"""Tokenizers and text encoders of the embedded models: CLIP and T5, at toy size but real classes.

Both vocabularies are learnt from Scenes captions in the three languages, on top of the full byte
(CLIP) or Latin (T5) alphabet, so that any text tokenizes and every caption word is one token.
"""

from __future__ import annotations

import json
import math
import string
from collections import Counter

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from tmpdiff_bench.zoo.captions import LANGUAGES, caption, sample_captions
from tmpdiff_bench.zoo.scenes import sample_scenes

MAX_TOKENS = 24  # the longest caption has 21 words
CLIP_WIDTH = 64
T5_WIDTH = 128
_ACCENTED = "áéíóúñüäößÁÉÍÓÚÑÜÄÖ¿¡"
_CHARACTER_SCORE = -30.0
_START, _END = "<|startoftext|>", "<|endoftext|>"


def corpus(n: int = 20_000, *, seed: int = 0) -> list[str]:
    """Captions that tokenizers learn from: `n` training scenes in every language."""
    _, captions = sample_captions(sample_scenes(n, seed=seed), seed=seed, reserved=False)
    return [caption(c.requirement, language) for c in captions for language in LANGUAGES]


def train_clip_tokenizer(texts: list[str]) -> CLIPTokenizer:
    """Byte-level BPE in CLIP's layout: bytes, bytes ending a word, merges, two special tokens."""
    shape = CLIPTokenizer()  # an empty one, for its normalizer and pre-tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = shape.backend_tokenizer.normalizer
    learner.pre_tokenizer = shape.backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=2000, end_of_word_suffix="</w>", show_progress=False)
    learner.train_from_iterator(texts, trainer)
    merges = [tuple(m) for m in json.loads(learner.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = alphabet + [c + "</w>" for c in alphabet] + ["".join(m) for m in merges]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*tokens, _START, _END]))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)


def train_t5_tokenizer(texts: list[str]) -> T5TokenizerFast:
    """Unigram pieces in T5's layout (pad 0, end 1, unknown 2): caption words, then characters.

    A word's score is its log frequency, and characters cost so much that a known word never falls
    apart; on so small a vocabulary the usual EM training prunes whole words away.
    """
    counts = Counter(word for text in texts for word in text.replace(",", " ,").split())
    total = counts.total()
    words = [("▁" + w, math.log(n / total)) for w, n in sorted(counts.items()) if w != ","]
    letters = [(c, _CHARACTER_SCORE) for c in ("▁", *string.printable.strip(), *_ACCENTED)]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5TokenizerFast(
        vocab=[*special, *words, *letters], extra_ids=0, model_max_length=MAX_TOKENS
    )


def build_clip_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """An untrained two-layer CLIP text encoder of width 64."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=CLIP_WIDTH,
            intermediate_size=4 * CLIP_WIDTH,
            projection_dim=CLIP_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_t5_encoder(tokenizer: T5TokenizerFast) -> T5EncoderModel:
    """An untrained two-layer T5 v1.1 encoder of width 128."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=T5_WIDTH,
            d_kv=32,
            d_ff=2 * T5_WIDTH,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
