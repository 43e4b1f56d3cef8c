"""Prompts of a user's own file."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.prompts.files import read_prompts

TEXTS = ["a red circle", "ein blauer Stern, über einem Ring", 'a "quoted" prompt']


def written(folder: Path, kind: str, column: str = "text") -> Path:
    path = folder / f"mine.{kind}"
    table = pd.DataFrame({column: TEXTS, "other": range(len(TEXTS))})
    if kind == "txt":
        path.write_text("\n".join([*TEXTS[:1], "", "   ", *TEXTS[1:], ""]), encoding="utf-8")
    elif kind == "csv":
        table.to_csv(path, index=False)
    else:
        table.to_parquet(path)
    return path


@pytest.mark.parametrize("column", ["text", "prompt", "caption"])
@pytest.mark.parametrize("kind", ["txt", "csv", "parquet"])
def test_all_kinds_of_files_say_the_same(tmp_path: Path, kind: str, column: str) -> None:
    found = read_prompts(written(tmp_path, kind, column))
    assert list(found["text"]) == TEXTS
    assert list(found["prompt_id"]) == list(read_prompts(written(tmp_path, "txt"))["prompt_id"])


def test_ids_belong_to_texts_not_to_places(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n".join(TEXTS), encoding="utf-8")
    first = read_prompts(path).set_index("text")["prompt_id"]
    path.write_text("\n".join(["another", *reversed(TEXTS)]), encoding="utf-8")
    second = read_prompts(path).set_index("text")["prompt_id"]
    assert first.to_dict() == second.drop("another").to_dict()
    assert second.is_unique


def test_given_ids_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt_id,prompt\n007,a ring\n8,a star\n", encoding="utf-8")
    assert list(read_prompts(path)["prompt_id"]) == ["007", "8"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[]", r"\.txt, \.csv and \.parquet files are read"),
        ("a.txt", "\n \n", "holds no prompt"),
        ("a.txt", "a ring\na ring\n", r"has 'a ring' \(\w{12}\) twice"),
        ("a.csv", "words\na ring\n", "has the columns words: one of text, prompt, caption"),
        ("a.csv", "", "can't be read: No columns"),
        ("a.csv", 'text\n"open', "can't be read"),
        ("a.parquet", "no parquet", "can't be read"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=message) as caught:
        read_prompts(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_and_absent_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UsageError, match="can't be read"):
        read_prompts(tmp_path / "a.txt")
    with pytest.raises(UsageError, match="there is no such file"):
        read_prompts(tmp_path / "b.txt")
