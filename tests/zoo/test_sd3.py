"""What the embedded sd3 is trained on and starts from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.zoo import sd3
from tmpdiff_bench.zoo.captions import sample_captions
from tmpdiff_bench.zoo.denoising import Batch, DenoiserPart
from tmpdiff_bench.zoo.latents import LatentSet, build_latents
from tmpdiff_bench.zoo.scenes import sample_scenes
from tmpdiff_bench.zoo.sd3 import Sd3Recipe, position_codes, take_weights


@pytest.fixture(scope="module")
def data(untrained_sd3: StableDiffusion3Pipeline) -> LatentSet:
    tokenizers = (untrained_sd3.tokenizer, untrained_sd3.tokenizer_3)
    return build_latents(untrained_sd3.vae, tokenizers, 96, seed=5, captions_per_scene=2)


def test_position_codes_tell_positions_apart() -> None:
    codes = position_codes()[0]
    assert codes.shape == (64, 128)
    assert torch.equal(codes, codes.bfloat16().float()), "they ship as bfloat16"
    norms = codes.norm(dim=1)
    cosines = (codes @ codes.T) / (norms[:, None] * norms)
    assert torch.allclose(norms, torch.full((64,), 8.0), atol=0.05)
    assert (cosines - torch.eye(64)).max() < 0.9  # SD3's own: 0.9956 between neighbours


def test_placed_captions_are_marked(
    untrained_sd3: StableDiffusion3Pipeline, data: LatentSet
) -> None:
    scenes = sample_scenes(96, seed=5, split="train")
    rows, captions = sample_captions(scenes, seed=10, reserved=False)
    said = {int(row): c for row, c in zip(rows, captions, strict=True)}
    texts = untrained_sd3.tokenizer_3.batch_decode(data.t5[:, 0], skip_special_tokens=True)
    assert [c.text for c in said.values()] == texts
    placed = [c.requirement.mentions[0].cell is not None for c in said.values()]
    alone = [len(c.requirement.mentions) == 1 for c in said.values()]
    assert data.placed[:, 0].tolist() == [a and b for a, b in zip(placed, alone, strict=True)]
    assert 0 < data.placed.float().mean() < 0.4


def test_the_first_iterations_see_placed_captions_only(
    untrained_sd3: StableDiffusion3Pipeline, data: LatentSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)  # nothing is compiled
    recipe = Sd3Recipe(untrained_sd3)
    part = DenoiserPart(recipe, data, data, batch=16)
    seen: list[torch.Tensor] = []

    def predicted(noisy: torch.Tensor, time: torch.Tensor, batch: Batch) -> torch.Tensor:
        seen.append(batch.t5)
        return noisy

    monkeypatch.setattr(recipe, "predicted", predicted)
    for iteration in (0, recipe.placed_iterations - 1, recipe.placed_iterations):
        part.loss(iteration, torch.Generator().manual_seed(iteration))
    allowed = {tuple(ids.tolist()) for ids in data.t5[data.placed]}
    empty = tuple(recipe._empty[1][0].tolist())
    drawn = [{tuple(ids.tolist()[:24]) for ids in t5} - {empty} for t5 in seen]
    assert drawn[0] | drawn[1] <= allowed
    assert not drawn[2] <= allowed


def test_a_run_starts_from_the_embedded_transformer(
    untrained_sd3: StableDiffusion3Pipeline, tmp_path: Path
) -> None:
    pipeline = sd3.build_pipeline(untrained_sd3.vae, seed=3)
    encoder = pipeline.text_encoder.state_dict()["text_model.final_layer_norm.weight"].clone()
    untrained_sd3.save_pretrained(tmp_path)
    take_weights(pipeline, tmp_path)
    for name, value in pipeline.transformer.state_dict().items():
        assert torch.equal(value, untrained_sd3.transformer.state_dict()[name]), name
    assert torch.equal(pipeline.transformer.pos_embed.pos_embed, position_codes())
    now = pipeline.text_encoder.state_dict()["text_model.final_layer_norm.weight"]
    assert torch.equal(now, encoder)
    with pytest.raises(UsageError, match="holds no embedded sd3"):
        take_weights(pipeline, tmp_path / "nowhere")
