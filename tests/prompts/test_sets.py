"""Scenes, and the published sets read from files in their true schemas, offline."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.experiment import Experiment
from tmpdiff_bench.prompts import COLUMNS, SOURCES, Prompts, prompt_source, take
from tmpdiff_bench.prompts.base import tidy
from tmpdiff_bench.prompts.published import HubPrompts
from tmpdiff_bench.trajectory.__main__ import main
from tmpdiff_bench.zoo.prompts import SPLITS, mixed_prompts

# What readers get wrong: numbers, words that mean "missing", quotation marks, other scripts,
# colons and commas; blanks around a prompt are not part of it.
HARD = [
    "a corgi",
    "42",
    "0",
    "None",
    "NA",
    'The words "Fly an airplane" on a wall, in red.',
    "style: oil, on canvas # not a comment",
    "Salvador Dalí, 東京",
]
MESSY = [*HARD, "a corgi", "  a corgi ", "", "   "]  # two duplicates, two empty


def write_mjhq(path: Path, texts: list[str]) -> None:
    entries = {f"{i:08x}": {"category": "people", "prompt": t} for i, t in enumerate(texts)}
    path.write_text(json.dumps(entries), encoding="utf-8")


def write_sdci(path: Path, texts: list[str]) -> None:
    entries = {f"sa_{i}": text for i, text in enumerate(texts)}
    path.write_text(yaml.safe_dump(entries, allow_unicode=True), encoding="utf-8")


def write_coco(path: Path, texts: list[str]) -> None:
    count = len(texts)
    table = {
        "license": [4] * count,
        "file_name": [f"{i:012d}.jpg" for i in range(count)],
        "coco_url": ["http://images.example/a.jpg"] * count,
        "height": [480] * count,
        "width": [640] * count,
        "date_captured": ["2013-11-14 17:02:52"] * count,
        "flickr_url": ["http://flickr.example/a.jpg"] * count,
        "image_id": list(range(count)),
        "ids": [[5 * i + j for j in range(5)] for i in range(count)],
        "captions": [
            [text, *(f"another {j} of {i}" for j in range(4))] for i, text in enumerate(texts)
        ],
    }
    pd.DataFrame(table).to_parquet(path)


def write_partiprompts(path: Path, texts: list[str]) -> None:
    lines = ["Prompt\tCategory\tChallenge\tNote", *(f"{t}\tAbstract\tBasic\t" for t in texts)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_drawbench(path: Path, texts: list[str]) -> None:
    pd.DataFrame({"Prompts": texts, "Category": "Colors"}).to_csv(path, index=False)


WRITERS: dict[str, Callable[[Path, list[str]], None]] = {
    "mjhq": write_mjhq,
    "sdci": write_sdci,
    "coco": write_coco,
    "partiprompts": write_partiprompts,
    "drawbench": write_drawbench,
}


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's client, which may not go to the network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def source_of(name: str) -> HubPrompts:
    source = SOURCES[name]
    assert isinstance(source, HubPrompts)
    return source


def cached(source: HubPrompts, hub: Path) -> Path:
    """Where the hub's client keeps the file of a set."""
    folder = hub / f"datasets--{source.repository.replace('/', '--')}"
    path = folder / "snapshots" / source.revision / source.file
    path.parent.mkdir(parents=True)
    return path


@pytest.mark.parametrize("name", WRITERS)
def test_a_published_set_in_its_true_schema(name: str, hub: Path) -> None:
    source = source_of(name)
    WRITERS[name](cached(source, hub), MESSY)
    found = source.load()
    assert tuple(found.table.columns) == COLUMNS
    assert sorted(found.table["text"]) == sorted(HARD)
    assert set(found.table["dataset"]) == {name}
    assert found.origin == {
        "repository": source.repository,
        "revision": source.revision,
        "file": source.file,
        "licence": source.licence,
        "rows": len(MESSY),
        "empty": 2,
        "duplicates": 2,
    }
    json.dumps(dict(found.origin))


@pytest.mark.parametrize("name", WRITERS)
def test_commits_are_pinned(name: str) -> None:
    revision = source_of(name).revision
    assert len(revision) == 40
    assert set(revision) <= set("0123456789abcdef")


def test_another_commit_in_the_cache_is_not_taken(hub: Path) -> None:
    source = source_of("drawbench")
    write_drawbench(cached(replace(source, revision="0" * 40), hub), HARD)
    with pytest.raises(UsageError, match="not in the hub's cache"):
        source.load()


@pytest.mark.parametrize("name", WRITERS)
def test_offline_and_not_cached(name: str) -> None:
    with pytest.raises(
        UsageError, match="is not in the hub's cache and can't be fetched"
    ) as caught:
        source_of(name).load()
    message = str(caught.value)
    assert message.startswith(f"--prompt-set {name}: ")
    assert "--prompts FILE" in message
    assert "\n" not in message


# `datasets` leaves the file open when a reader of its fails
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("content", [b"", b"[1, 2]", b"other,columns\na,b\n", b"\xff\xfe\xfa"])
def test_another_schema_is_one_clear_line(name: str, content: bytes, hub: Path) -> None:
    source = source_of(name)
    cached(source, hub).write_bytes(content)
    with pytest.raises(UsageError, match="is not as expected") as caught:
        source.load()
    assert "--prompts FILE" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", WRITERS)
def test_a_set_of_empty_prompts_is_refused(name: str, hub: Path) -> None:
    source = source_of(name)
    WRITERS[name](cached(source, hub), ["", "  "])
    with pytest.raises(UsageError, match="holds no prompt"):
        source.load()


@given(st.lists(st.text(), max_size=40))
def test_split_and_order_belong_to_texts(texts: list[str]) -> None:
    """They do not depend on the order in the file, on the other prompts, or on the set's name."""
    table, counts = tidy(texts, "a")
    wanted = {text.strip() for text in texts} - {""}
    assert set(table["text"]) == wanted
    assert counts["rows"] == len(texts) == counts["empty"] + counts["duplicates"] + len(wanted)
    assert table["prompt_id"].is_unique
    other, _ = tidy([*reversed(texts), "one more"], "b")
    columns = ["prompt_id", "text", "split"]
    kept = other[other["text"].isin(wanted)]
    assert kept[columns].to_dict("records") == table[columns].to_dict("records")


def test_splits_are_disjoint_and_halves() -> None:
    table, _ = tidy((f"prompt {i}" for i in range(4000)), "a")
    prompts = Prompts("a", table, {})
    sides = [set(take(prompts, split, None)["prompt_id"]) for split in SPLITS]
    assert not sides[0] & sides[1]
    assert sum(map(len, sides)) == 4000
    assert abs(len(sides[0]) - 2000) < 5 * 4000**0.5 / 2  # five standard deviations of a fair coin


def test_what_is_asked_for_is_taken() -> None:
    table, _ = tidy((f"prompt {i}" for i in range(50)), "a")
    prompts = Prompts("a", table, {})
    half = take(prompts, "evaluation", None)
    assert take(prompts, "evaluation", 3).equals(half.head(3))
    for count in (0, -1, len(half) + 1):
        with pytest.raises(UsageError, match=f"{count} prompts asked for: a has 1 to {len(half)}"):
            take(prompts, "evaluation", count)
    with pytest.raises(UsageError, match="did you mean 'evaluation'"):
        take(prompts, "evaluate", 3)


def test_scenes_go_through_the_same_interface() -> None:
    everything = prompt_source().load()
    assert everything.name == "scenes"
    for split in SPLITS:
        assert take(everything, split, 16).equals(mixed_prompts(16, split))
    counts = prompt_source("scenes-counts").load()
    assert set(COLUMNS) <= set(counts.table.columns)
    assert set(counts.table["dataset"]) == {"scenes-counts"}


def test_files_go_through_the_same_interface(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("\n".join(HARD), encoding="utf-8")
    source = prompt_source(own=path)
    found = source.load()
    assert set(found.table.columns) == set(COLUMNS)
    assert list(take(found, "calibration", source.default_count)["text"]) == HARD
    assert list(take(found, "calibration", 2)["text"]) == HARD[:2]
    assert (found.name, found.origin["file"]) == ("mine", "mine.txt")
    with pytest.raises(UsageError, match="exclude one another"):
        prompt_source("coco", path)


def test_a_prompt_has_the_same_id_in_a_file_and_in_a_set(tmp_path: Path, hub: Path) -> None:
    write_drawbench(cached(source_of("drawbench"), hub), HARD)
    path = tmp_path / "mine.txt"
    path.write_text("\n".join(HARD), encoding="utf-8")
    ids = [
        dict(zip(table["text"], table["prompt_id"], strict=True))
        for table in (
            prompt_source("drawbench").load().table,
            prompt_source(own=path).load().table,
        )
    ]
    assert ids[0] == ids[1]


def test_unknown_sets_name_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown prompt set 'partiprompt': did you mean 'partip"):
        prompt_source("partiprompt")


def test_help_names_every_set() -> None:
    text = {f.name: f.metadata["help"] for f in fields(Experiment)}["prompt_set"]
    for name in SOURCES:
        assert name in text


def test_the_command_names_the_way_out(tmp_path: Path) -> None:
    """Before a model is loaded, and with nothing left behind."""
    command = "record --model sd3 --prompt-set mjhq --out"
    with pytest.raises(UsageError, match=r"--prompt-set mjhq: .* --prompts FILE"):
        main([*command.split(), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
