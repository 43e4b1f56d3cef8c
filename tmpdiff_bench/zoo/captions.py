"""Captions of scenes, in English, German and Spanish, and what each of them requires of an image.

A `Requirement` is the language-free content of a caption. Prompts and validation captions use
requirements that training never sees in any language: `is_reserved` splits by a hash of it.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmpdiff_bench.zoo.scenes import COLOURS, GRID, SHAPES, SIZES, SceneObject, Scenes

LANGUAGES = ("en", "de", "es")
LANGUAGE_SHARES = (0.5, 0.25, 0.25)
KINDS = ("attributes", "places", "relations", "counts")
_RESERVED_SHARE = 16  # one requirement in this many is kept from training


@dataclass(frozen=True)
class Mention:
    """`count` objects of one colour and shape; `size` and `cell` are None where not said."""

    shape: int
    colour: int
    size: int | None = None
    cell: int | None = None
    count: int = 1


@dataclass(frozen=True)
class Requirement:
    """What a caption demands: mentions, the relation of the first to the second, background."""

    kind: str
    mentions: tuple[Mention, ...]
    relation: str | None = None
    background: int | None = None

    def to_json(self) -> str:
        """Canonical JSON; `from_json` reads it."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Requirement:
        """The requirement that `to_json` wrote."""
        fields = json.loads(text)
        fields["mentions"] = tuple(Mention(**m) for m in fields["mentions"])
        return cls(**fields)


def is_reserved(requirement: Requirement) -> bool:
    """Whether this content is kept from training, whatever the language."""
    digest = hashlib.sha256(requirement.to_json().encode()).digest()
    return digest[0] % _RESERVED_SHARE == 0


def require(scenes: Scenes, row: int, rng: np.random.Generator) -> Requirement:
    """Draw a true requirement of one scene: which of its properties a caption mentions."""
    objects = list(scenes.objects(row))
    background = int(scenes.background[row]) if rng.random() < 0.4 else None
    say_size = rng.random() < 0.4
    groups: dict[tuple[int, int], list[SceneObject]] = {}
    for o in objects:
        groups.setdefault((o.shape, o.colour), []).append(o)
    if len(groups) < len(objects):
        mentions = [
            Mention(shape, colour, count=len(same)) for (shape, colour), same in groups.items()
        ]
        order = rng.permutation(len(mentions))
        return Requirement("counts", tuple(mentions[i] for i in order), None, background)
    objects = [objects[i] for i in rng.permutation(len(objects))]

    def mention(o: SceneObject, *, place: bool = False) -> Mention:
        return Mention(o.shape, o.colour, o.size if say_size else None, o.cell if place else None)

    draw = rng.random()
    if len(objects) == 2 and draw < 0.5:
        relations = _relations(objects[0], objects[1])
        relation = relations[rng.integers(len(relations))]
        return Requirement("relations", tuple(map(mention, objects)), relation, background)
    if len(objects) <= 2 and draw > 0.6:
        placed = tuple(mention(o, place=True) for o in objects)
        return Requirement("places", placed, None, background)
    return Requirement("attributes", tuple(map(mention, objects)), None, background)


def _relations(a: SceneObject, b: SceneObject) -> list[str]:
    """The relations that hold between two objects in different cells (one or two)."""
    across, down = a.cell % GRID - b.cell % GRID, a.cell // GRID - b.cell // GRID
    found = ["left"] * (across < 0) + ["right"] * (across > 0)
    return found + ["above"] * (down < 0) + ["below"] * (down > 0)


def caption(requirement: Requirement, language: str) -> str:
    """The sentence for a requirement; one sentence for each (requirement, language)."""
    words, phrase = _WORDS[language], _PHRASES[language]
    phrases = [
        phrase(words, m, oblique=requirement.relation is not None and i == 1)
        for i, m in enumerate(requirement.mentions)
    ]
    if requirement.relation is not None:
        text = f"{phrases[0]} {words['relations'][requirement.relation]} {phrases[1]}"
    else:
        text = ", ".join(phrases[:-1]) + f" {words['conjunction']} " if phrases[1:] else ""
        text += phrases[-1]
    if requirement.background is not None:
        text += f" {words['backgrounds'][requirement.background]}"
    return text


# a language's words, and the noun phrase of a mention in it; `oblique` after a preposition
_WORDS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def _english(words: Mapping[str, Any], m: Mention, *, oblique: bool) -> str:
    said = [SIZES[m.size]] if m.size is not None else []
    said.append(COLOURS[m.colour])
    noun = SHAPES[m.shape]
    if m.count > 1:
        plural = noun + ("es" if noun.endswith("s") else "s")
        return " ".join([words["numbers"][m.count - 2], *said, plural])
    article = "an" if said[0][0] in "aeiou" else "a"
    return " ".join([article, *said, noun, *_place(words, m)])


def _german(words: Mapping[str, Any], m: Mention, *, oblique: bool) -> str:
    ending, singular, plural = words["shapes"][m.shape]
    stems = [words["sizes"][m.size]] if m.size is not None else []
    stems.append(words["colours"][m.colour])
    if m.count > 1:
        return " ".join([words["numbers"][m.count - 2], *(s + "e" for s in stems), plural])
    # all six nouns are masculine or neuter: the dative is "einem" with weak "-en"
    article, ending = ("einem", "en") if oblique else ("ein", ending)
    return " ".join([article, *(s + ending for s in stems), singular, *_place(words, m)])


def _spanish(words: Mapping[str, Any], m: Mention, *, oblique: bool) -> str:
    feminine, singular, plural = words["shapes"][m.shape]
    colour = words["colours"][m.colour]
    if m.count > 1:
        return f"{words['numbers'][m.count - 2]} {plural} {colour[2 + feminine]}"
    said = ["una" if feminine else "un", singular, colour[feminine]]
    if m.size is not None:
        said.append(words["sizes"][m.size][feminine])
    return " ".join([*said, *_place(words, m)])


def _place(words: Mapping[str, Any], m: Mention) -> tuple[str, ...]:
    return () if m.cell is None else (words["places"][m.cell],)


_PHRASES = {"en": _english, "de": _german, "es": _spanish}


@dataclass(frozen=True)
class Captioned:
    """A caption with its language and what it requires."""

    text: str
    language: str
    requirement: Requirement


def sample_captions(
    scenes: Scenes, *, seed: int, reserved: bool
) -> tuple[NDArray[np.int64], list[Captioned]]:
    """Caption each scene from one side of the split; returns the rows captioned and the captions.

    A scene is asked up to twelve times for a requirement on the wanted side, then passed over
    (a scene of three like objects has only two things to say of itself).
    """
    rng = np.random.default_rng([0x5CE7E5, seed])
    rows, captions = [], []
    for row in range(len(scenes)):
        drawn = (require(scenes, row, rng) for _ in range(12))
        requirement = next((r for r in drawn if is_reserved(r) == reserved), None)
        if requirement is None:
            continue
        language = str(rng.choice(LANGUAGES, p=LANGUAGE_SHARES))
        rows.append(row)
        captions.append(Captioned(caption(requirement, language), language, requirement))
    return np.array(rows, dtype=np.int64), captions
