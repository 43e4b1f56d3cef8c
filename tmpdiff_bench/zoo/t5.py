"""The T5 encoder of flux and pixart, taught to say what the CLIP encoders of sd3 say.

Trained beside CLIP encoders, the T5 of sd3 has learnt nothing: without it sd3 draws its prompts as
well as with it, and without CLIP it draws none of them. So this one learns, for every word, the
hidden states that sd3's transformer gets for that word from CLIP (feature regression, Romero et al.
2015, "FitNets"). Words are lower-case: `PixArtSigmaPipeline` lowers what it is given.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import StableDiffusion3Pipeline
from torch import Tensor, nn
from transformers import T5EncoderModel, T5TokenizerFast

from tmpdiff_bench.zoo.latents import LatentSet
from tmpdiff_bench.zoo.text import build_t5_encoder, corpus, train_t5_tokenizer

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
