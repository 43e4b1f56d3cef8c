"""Tokenizers and text encoders of the embedded models: CLIP and T5, at toy size but real classes.

Both vocabularies are learnt from Scenes captions in the three languages, on top of the full byte
(CLIP) or Latin (T5) alphabet, so that any text tokenizes and every caption word is one token.

Trained beside CLIP encoders, the T5 of sd3 has learnt nothing: without it sd3 draws its prompts as
well as with it, and without CLIP it draws none of them. So that of flux and pixart learns, for each
word, the hidden states that sd3's transformer gets for that word from CLIP (feature regression,
Romero et al. 2015, "FitNets"). Its words are lower-case: `PixArtSigmaPipeline` lowers its prompts.
"""

from __future__ import annotations

import json
import math
import string
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from diffusers import StableDiffusion3Pipeline
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
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

if TYPE_CHECKING:
    from tmpdiff_bench.zoo.latents import LatentSet


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


MASKED_SHARE = 0.5  # pixart hides padding from the encoder, flux does not


def lower_case_tokenizer() -> T5TokenizerFast:
    """A T5 tokenizer of lower-cased captions; other case falls apart into characters."""
    return train_t5_tokenizer([text.lower() for text in corpus()])


def lowered_ids(cased: T5TokenizerFast, lower: T5TokenizerFast) -> Tensor:
    """For every id of `cased` that of its piece in `lower`, unknown (2) where there is none."""
    pieces = cased.convert_ids_to_tokens(range(len(cased)))
    known = lower.get_vocab()
    return torch.tensor([known.get(p, known.get(p.lower(), lower.unk_token_id)) for p in pieces])


class T5Part:
    """Trains a T5 encoder to give, per word, sd3's CLIP states, each dimension standardised."""

    name = "t5"

    def __init__(
        self,
        teacher: StableDiffusion3Pipeline,
        training: LatentSet,
        validation: LatentSet,
        *,
        batch: int = 128,
        seed: int = 0,
    ) -> None:
        torch.manual_seed(seed)
        self.tokenizer = lower_case_tokenizer()
        self.encoder: T5EncoderModel = build_t5_encoder(self.tokenizer)
        self.modules = nn.ModuleDict({"encoder": self.encoder})
        self._teacher, self._batch = teacher, batch
        table = lowered_ids(teacher.tokenizer_3, self.tokenizer)
        self._training = (training.clip.flatten(0, 1), table[training.t5].flatten(0, 1))
        self._validation = (validation.clip.flatten(0, 1), table[validation.t5].flatten(0, 1))
        states, words = self._states(self._training[0][:4096], self._training[1][:4096])
        self._mean, self._deviation = states[words].mean(dim=0), states[words].std(dim=0)

    def is_hidden_matrix(self, parameter: str) -> bool:
        value = self.modules.get_parameter(parameter)
        return value.ndim == 2 and ".block." in parameter and "bias" not in parameter

    def _states(self, clip: Tensor, t5: Tensor) -> tuple[Tensor, Tensor]:
        """CLIP states (n, 24, 128) shifted so that they stand where T5 has the same word, and the
        mask of words.
        """
        with torch.no_grad():
            encoders = (self._teacher.text_encoder, self._teacher.text_encoder_2)
            states = [e(clip, output_hidden_states=True).hidden_states[-2] for e in encoders]
        # CLIP begins with a token that T5 does not have; both end with one
        shifted = F.pad(torch.cat(states, dim=-1)[:, 1:], (0, 0, 0, 1))
        words = t5 != 0
        words[:, -1] = False
        return shifted, words

    def loss(self, iteration: int, generator: torch.Generator) -> Tensor:
        clip, t5 = self._training
        rows = torch.randint(len(clip), (self._batch,), generator=generator)
        masked = float(torch.rand((), generator=generator)) < MASKED_SHARE
        return self._error(clip[rows], t5[rows], masked=masked)

    def _error(self, clip: Tensor, t5: Tensor, *, masked: bool) -> Tensor:
        states, words = self._states(clip, t5)
        wanted = (states[words] - self._mean) / self._deviation
        mask = (t5 != 0).long() if masked else None
        found = self.encoder(t5, attention_mask=mask)[0]
        return F.mse_loss(found[words], wanted)

    def evaluate(self) -> dict[str, float]:
        """Share of the states' variance that is not explained, with padding hidden and seen."""
        clip, t5 = self._validation
        return {
            "unexplained_masked": float(self._error(clip, t5, masked=True)),
            "unexplained_plain": float(self._error(clip, t5, masked=False)),
        }


def load_t5(folder: Path) -> tuple[T5TokenizerFast, T5EncoderModel]:
    """The trained encoder and its tokenizer, as saved by `save_t5`."""
    encoder = T5EncoderModel.from_pretrained(folder / "encoder", dtype=torch.float32)
    tokenizer = T5TokenizerFast.from_pretrained(folder / "tokenizer")
    return tokenizer, encoder.eval().requires_grad_(False)


def save_t5(part: T5Part, folder: Path) -> None:
    """Write encoder (bfloat16, as it ships) and tokenizer."""
    part.encoder.to(torch.bfloat16).save_pretrained(folder / "encoder")
    part.tokenizer.save_pretrained(folder / "tokenizer")
