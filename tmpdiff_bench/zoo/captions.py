"""Captions of scenes, in English, German and Spanish, and what each of them requires of an image.

A `Requirement` is the language-free content of a caption. Prompts and validation captions use
requirements that training never sees in any language: `is_reserved` splits by a hash of it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tmpdiff_bench.zoo.scenes import (
    BACKGROUNDS,
    COLOURS,
    GRID,
    SHAPES,
    SIZES,
    SceneObject,
    Scenes,
)

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
    grammar = _GRAMMARS[language]
    phrases = [
        grammar.phrase(m, oblique=requirement.relation is not None and i == 1)
        for i, m in enumerate(requirement.mentions)
    ]
    if requirement.relation is not None:
        text = f"{phrases[0]} {grammar.relations[requirement.relation]} {phrases[1]}"
    else:
        text = ", ".join(phrases[:-1]) + f" {grammar.conjunction} " if phrases[1:] else ""
        text += phrases[-1]
    if requirement.background is not None:
        text += f" {grammar.backgrounds[requirement.background]}"
    return text


class _Grammar(Protocol):
    conjunction: str
    relations: dict[str, str]
    backgrounds: tuple[str, ...]

    def phrase(self, m: Mention, *, oblique: bool) -> str:
        """The noun phrase of a mention; `oblique` after a preposition."""
        ...


class _English:
    conjunction = "and"
    relations = {
        "left": "to the left of",
        "right": "to the right of",
        "above": "above",
        "below": "below",
    }
    places = (
        "in the top left",
        "at the top",
        "in the top right",
        "on the left",
        "in the centre",
        "on the right",
        "in the bottom left",
        "at the bottom",
        "in the bottom right",
    )
    backgrounds = tuple(f"on a {b} background" for b in BACKGROUNDS)
    numbers = {2: "two", 3: "three"}

    def phrase(self, m: Mention, *, oblique: bool) -> str:
        words = [SIZES[m.size]] if m.size is not None else []
        words.append(COLOURS[m.colour])
        noun = SHAPES[m.shape]
        if m.count > 1:
            plural = noun + ("es" if noun.endswith("s") else "s")
            return " ".join([self.numbers[m.count], *words, plural])
        article = "an" if words[0][0] in "aeiou" else "a"
        return " ".join([article, *words, noun, *_place(self.places, m)])


class _German:
    conjunction = "und"
    relations = {"left": "links von", "right": "rechts von", "above": "über", "below": "unter"}
    places = (
        "oben links",
        "oben in der Mitte",
        "oben rechts",
        "links",
        "in der Mitte",
        "rechts",
        "unten links",
        "unten in der Mitte",
        "unten rechts",
    )
    backgrounds = tuple(
        f"auf {b} Hintergrund" for b in ("weißem", "grauem", "schwarzem", "rosafarbenem")
    )
    numbers = {2: "zwei", 3: "drei"}
    # (nominative ending of adjectives, singular, plural)
    nouns = (
        ("er", "Kreis", "Kreise"),
        ("es", "Quadrat", "Quadrate"),
        ("es", "Dreieck", "Dreiecke"),
        ("er", "Stern", "Sterne"),
        ("er", "Ring", "Ringe"),
        ("es", "Kreuz", "Kreuze"),
    )
    colours = ("rot", "orangefarben", "gelb", "grün", "blau", "violett")
    sizes = ("klein", "groß")

    def phrase(self, m: Mention, *, oblique: bool) -> str:
        ending, singular, plural = self.nouns[m.shape]
        stems = [self.sizes[m.size]] if m.size is not None else []
        stems.append(self.colours[m.colour])
        if m.count > 1:
            return " ".join([self.numbers[m.count], *(s + "e" for s in stems), plural])
        # all six nouns are masculine or neuter: the dative is "einem" with weak "-en"
        article, ending = ("einem", "en") if oblique else ("ein", ending)
        return " ".join([article, *(s + ending for s in stems), singular, *_place(self.places, m)])


class _Spanish:
    conjunction = "y"
    relations = {
        "left": "a la izquierda de",
        "right": "a la derecha de",
        "above": "encima de",
        "below": "debajo de",
    }
    places = (
        "arriba a la izquierda",
        "arriba en el centro",
        "arriba a la derecha",
        "a la izquierda",
        "en el centro",
        "a la derecha",
        "abajo a la izquierda",
        "abajo en el centro",
        "abajo a la derecha",
    )
    backgrounds = tuple(f"sobre fondo {b}" for b in ("blanco", "gris", "negro", "rosa"))
    numbers = {2: "dos", 3: "tres"}
    # (feminine, singular, plural)
    nouns = (
        (False, "círculo", "círculos"),
        (False, "cuadrado", "cuadrados"),
        (False, "triángulo", "triángulos"),
        (True, "estrella", "estrellas"),
        (False, "anillo", "anillos"),
        (True, "cruz", "cruces"),
    )
    # (masculine, feminine, masculine plural, feminine plural)
    colours = (
        ("rojo", "roja", "rojos", "rojas"),
        ("naranja", "naranja", "naranjas", "naranjas"),
        ("amarillo", "amarilla", "amarillos", "amarillas"),
        ("verde", "verde", "verdes", "verdes"),
        ("azul", "azul", "azules", "azules"),
        ("morado", "morada", "morados", "moradas"),
    )
    sizes = (("pequeño", "pequeña"), ("grande", "grande"))

    def phrase(self, m: Mention, *, oblique: bool) -> str:
        feminine, singular, plural = self.nouns[m.shape]
        if m.count > 1:
            return f"{self.numbers[m.count]} {plural} {self.colours[m.colour][2 + feminine]}"
        words = ["una" if feminine else "un", singular, self.colours[m.colour][feminine]]
        if m.size is not None:
            words.append(self.sizes[m.size][feminine])
        return " ".join([*words, *_place(self.places, m)])


def _place(places: tuple[str, ...], m: Mention) -> tuple[str, ...]:
    return () if m.cell is None else (places[m.cell],)


_GRAMMARS: dict[str, _Grammar] = {"en": _English(), "de": _German(), "es": _Spanish()}


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
