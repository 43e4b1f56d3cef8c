"""The how-to page: its commands, word for word and in order, and its Python."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from tmpdiff_bench.deploy.__main__ import main
from tmpdiff_bench.plan import PrecisionPlan

PAGE = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text(encoding="utf-8")
COMMAND = ["python", "-m", "tmpdiff_bench.deploy"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_its_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [shlex.split(line) for block in blocks("sh") for line in block.splitlines()]
    printed = []
    for words in lines:
        assert words[:3] == COMMAND
        main(words[3:])
        printed.append(capsys.readouterr())
    assert [words[3] for words in lines] == [
        "allocate",
        "allocate",
        "apply",
        *["export"] * 2,
        "import",
    ]
    plan, mixed = (
        PrecisionPlan.from_json(Path(f"{p}.json").read_text()) for p in ("plan", "mixed")
    )
    assert len(plan) == len(mixed) == 8
    assert "weights: " in printed[0].err
    assert "SSIM" in printed[2].out
    with Image.open("image.png") as picture:
        assert picture.size == (2 * 64 + 2, 64 + 18)
    assert printed[3].out == ",".join(mixed) + "\n"
    assert len(PrecisionPlan.from_json(printed[5].out)) == 8


def test_its_python_runs() -> None:
    names: dict[str, object] = {}
    (block,) = blocks("python")
    exec(block, names)
    image = names["image"]
    assert isinstance(image, Image.Image)
    assert image.size == (64, 64)
