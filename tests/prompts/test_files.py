"""Prompts of a user's own file."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.noise import generator_seed
from tmpdiff_bench.prompts.sources import OwnPrompts, read_prompts

TEXTS = ["a red circle", "ein blauer Stern, über einem Ring", 'a "quoted" prompt']


def written(folder: Path, kind: str, column: str = "text") -> Path:
    path = folder / f"mine.{kind}"
    table = pd.DataFrame({column: TEXTS, "other": range(len(TEXTS))})
    if kind == "txt":
        path.write_text("\n".join([*TEXTS[:1], "", "   ", *TEXTS[1:], ""]), encoding="utf-8")
    elif kind in ("csv", "tsv"):
        table.to_csv(path, index=False, sep="," if kind == "csv" else "\t")
    elif kind == "jsonl":
        table.to_json(path, orient="records", lines=True, force_ascii=False)
    else:
        table.to_parquet(path)
    return path


@pytest.mark.parametrize("column", ["text", "prompt", "caption"])
@pytest.mark.parametrize("kind", ["txt", "csv", "tsv", "jsonl", "parquet"])
def test_all_kinds_of_files_say_the_same(tmp_path: Path, kind: str, column: str) -> None:
    found = read_prompts(written(tmp_path, kind, column))
    assert list(found["text"]) == TEXTS
    assert list(found["prompt_id"]) == list(read_prompts(written(tmp_path, "txt"))["prompt_id"])
    assert ("other" in found) == (kind != "txt")
    if kind != "txt":
        assert list(found["other"]) == [0, 1, 2]


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


def test_repeated_lines_are_samples_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a ring\na star\na ring\na ring\n", encoding="utf-8")
    ids = list(read_prompts(path)["prompt_id"])
    assert [name.removeprefix(ids[0]) for name in (ids[0], *ids[2:])] == ["", "-2", "-3"]
    assert len({generator_seed(name, 0) for name in ids}) == 4


def test_texts_and_tables_are_taken_as_files_are(tmp_path: Path) -> None:
    from_file = OwnPrompts(written(tmp_path, "txt")).load().table
    for own in (TEXTS, pd.DataFrame({"prompt": TEXTS})):
        found = OwnPrompts(own).load()
        assert found.name == "own"
        columns = ["prompt_id", "text", "split"]
        pd.testing.assert_frame_equal(found.table[columns], from_file[columns])


def test_call_arguments_alone_are_samples_too(tmp_path: Path) -> None:
    """Models of classes are asked for no text."""
    path = tmp_path / "a.csv"
    path.write_text("class_labels,scale\n3,x\n207,1.5\n", encoding="utf-8")
    found = read_prompts(path)
    assert list(found.columns) == ["prompt_id", "class_labels", "scale"]
    assert list(found["class_labels"]) == [3, 207]
    assert list(found["scale"]) == ["x", 1.5]
    assert found["prompt_id"].is_unique


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[]", r"\.txt, \.csv, \.tsv, \.jsonl, \.parquet files are read"),
        ("a.txt", "\n \n", "holds no prompt"),
        ("a.csv", "prompt_id,text\n1,a ring\n1,a star\n", "has the prompt_id 1 twice"),
        ("a.csv", "text,image\na ring,a.png\na star,\n", "has no image for prompt 2"),
        ("a.jsonl", '{"text": "a ring", "seed": 1}\n{"text": "a star"}', "no seed for prompt 2"),
        ("a.jsonl", '{"text": "a ring"', "can't be read"),
        ("a.jsonl", '"a ring"', "can't be read: a line of it is not a JSON object"),
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
