"""Arguments of calls: by sample, for batches and alone, checked against the pipeline's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.tiny import TINY, WARNINGS
from tests.toy import toy
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.pipelines.calls import Call, check_call, read_argument

pytestmark = [pytest.mark.filterwarnings(entry) for entry in WARNINGS]
CALL = Call(
    {"num_inference_steps": 4, "negative_prompt": "blurred", "height": 64, "system_prompt": "x"},
    {"prompt": ["a", "b", "c"], "class_labels": [3, 1, 2]},
    (7, 8, 9),
)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=4))
def test_rows_have_their_own_arguments(rows: list[int]) -> None:
    found = CALL.rows(rows).arguments()
    generators = found.pop("generator")
    if len(rows) == 1:
        assert found == {
            **CALL.shared,
            "prompt": "abc"[rows[0]],
            "class_labels": [3, 1, 2][rows[0]],
        }
        generators = [generators]
    else:
        assert found["prompt"] == ["abc"[row] for row in rows]
        assert found["class_labels"] == [[3, 1, 2][row] for row in rows]
        assert found["negative_prompt"] == ["blurred"] * len(rows)
        assert (found["height"], found["num_inference_steps"]) == (64, 4)
    for row, generator in zip(rows, generators, strict=True):
        expected = torch.randn(5, generator=torch.Generator().manual_seed(7 + row))
        assert torch.equal(torch.randn(5, generator=generator), expected)
    part = CALL.rows(rows)
    alone = part.arguments()
    alone.pop("generator")
    assert alone == found


def test_pipelines_may_change_what_they_are_given() -> None:
    CALL.rows([0, 1]).arguments()["prompt"][0] = "changed"
    assert CALL.rows([0, 1]).arguments()["prompt"] == ["a", "b"]


def test_every_sample_has_a_value() -> None:
    with pytest.raises(UsageError, match="2 values of prompt for 3 samples"):
        Call({}, {"prompt": ["a", "b"]}, (1, 2, 3))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["guidance"], "unknown call argument of ToyPipeline 'guidance': did you mean 'guidance_s"),
        (["generator"], "call argument generator can't be given: --seed sets the noise"),
        (["num_inference_steps"], "--steps sets it"),
        (["latents"], "noise comes from seeds"),
        (["num_images_per_prompt"], "--num-seeds"),
    ],
)
def test_unknown_and_owned_arguments(names: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_call(toy(), names)
    assert message in str(caught.value)


def test_a_pipeline_without_generator() -> None:
    class Other:
        def __call__(self, prompt: str, num_inference_steps: int) -> None: ...

    with pytest.raises(UsageError, match="a Other takes no generator"):
        check_call(Other(), [])


@pytest.mark.parametrize("name", sorted(TINY))
def test_every_class_knows_its_own_arguments(name: str) -> None:
    tiny = TINY[name]
    check_call(tiny.build(), [*tiny.call, *tiny.each(1)])


def test_images_are_opened(tmp_path: Path) -> None:
    pipe: Any = TINY["StableDiffusionInpaintPipeline"].build()
    path = tmp_path / "a.png"
    Image.new("RGBA", (8, 6), "red").save(path)
    image = read_argument(pipe, "image", str(path))
    assert (image.size, image.mode) == ((8, 6), "RGB")
    assert read_argument(pipe, "mask_image", path).mode == "L"
    assert read_argument(pipe, "prompt", str(path)) == str(path)
    assert read_argument(pipe, "strength", 0.5) == 0.5
    assert read_argument(pipe, "image", image) is image
    path.write_text("no image")
    for bad in (path, tmp_path / "absent.png"):
        with pytest.raises(UsageError, match=r"image .*\.png can't be read as an image"):
            read_argument(pipe, "image", str(bad))
