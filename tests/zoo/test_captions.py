"""Captions are true of their scenes, the split is kept in every language, grammar agrees."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tmpdiff_bench.zoo.captions import (
    KINDS,
    LANGUAGES,
    Mention,
    Requirement,
    caption,
    is_reserved,
    sample_captions,
)
from tmpdiff_bench.zoo.recogniser import Reading, judge
from tmpdiff_bench.zoo.scenes import COLOURS, SHAPES, sample_scenes


def test_captions_are_true_of_their_scenes() -> None:
    scenes = sample_scenes(1500, seed=1)
    rows, captions = sample_captions(scenes, seed=1, reserved=False)
    assert {c.requirement.kind for c in captions} == set(KINDS)
    for row, captioned in zip(rows, captions, strict=True):
        reading = Reading(scenes.objects(row), int(scenes.background[row]))
        verdict = judge(captioned.requirement, reading)
        assert verdict.found == verdict.asked == scenes.count[row]
        assert verdict.all


def test_judge_sees_what_is_wrong() -> None:
    red_circle, blue_star = Mention(0, 0, cell=0), Mention(3, 4, cell=8)
    seen = sample_scenes(400, seed=2)
    reading = next(
        Reading(seen.objects(i), int(seen.background[i]))
        for i in range(400)
        if seen.count[i] == 1 and seen.objects(i)[0].shape == 0 and seen.objects(i)[0].colour == 0
    )
    asked = Requirement("attributes", (Mention(0, 0),))
    assert judge(asked, reading).all
    for wrong in (
        Requirement("attributes", (Mention(1, 0),)),
        Requirement("attributes", (Mention(0, 1),)),
        Requirement("attributes", (Mention(0, 0, size=1 - reading.objects[0].size),)),
        Requirement("places", (Mention(0, 0, cell=(reading.objects[0].cell + 1) % 9),)),
        Requirement("counts", (Mention(0, 0, count=2),)),
    ):
        verdict = judge(wrong, reading)
        assert verdict.found < verdict.asked
        assert not verdict.all
    other_background = Requirement("attributes", (Mention(0, 0),), None, 3 - reading.background)
    assert judge(other_background, reading).found == 1
    assert not judge(other_background, reading).all
    two = Reading(
        (*reading.objects, reading.objects[0]._replace(cell=reading.objects[0].cell + 1)), 0
    )
    assert not judge(asked, two).all
    # both objects there, but the relation turned round
    a, b = reading.objects[0]._replace(cell=0), reading.objects[0]._replace(cell=8, shape=3)
    relation = Requirement("relations", (Mention(0, 0), Mention(3, 0)), "left")
    turned = Requirement("relations", (Mention(0, 0), Mention(3, 0)), "right")
    assert judge(relation, Reading((a, b), 0)).all
    assert not judge(turned, Reading((a, b), 0)).all
    assert judge(turned, Reading((a, b), 0)).found == 2
    assert red_circle != blue_star


def test_the_split_holds_in_every_language() -> None:
    scenes = sample_scenes(3000, seed=3)
    _, training = sample_captions(scenes, seed=3, reserved=False)
    _, held_out = sample_captions(scenes, seed=3, reserved=True)
    shown = {caption(c.requirement, lang) for c in training for lang in LANGUAGES}
    assert not shown & {caption(c.requirement, lang) for c in held_out for lang in LANGUAGES}
    assert all(is_reserved(c.requirement) for c in held_out)


def test_language_shares() -> None:
    _, captions = sample_captions(sample_scenes(4000, seed=4), seed=4, reserved=False)
    share = [np.mean([c.language == language for c in captions]) for language in LANGUAGES]
    assert share == pytest.approx([0.5, 0.25, 0.25], abs=0.03)


def test_captions_say_different_things_differently() -> None:
    _, captions = sample_captions(sample_scenes(3000, seed=5), seed=5, reserved=False)
    for language in LANGUAGES:
        said: dict[str, Requirement] = {}
        for c in captions:
            text = caption(c.requirement, language)
            assert said.setdefault(text, c.requirement) == c.requirement


@pytest.mark.parametrize(
    ("requirement", "texts"),
    [
        (
            Requirement("attributes", (Mention(3, 4, 0), Mention(1, 1, 1)), None, 1),
            {
                "en": "a small blue star and a large orange square on a grey background",
                "de": "ein kleiner blauer Stern und ein großes orangefarbenes Quadrat "
                "auf grauem Hintergrund",
                "es": "una estrella azul pequeña y un cuadrado naranja grande sobre fondo gris",
            },
        ),
        (
            Requirement("relations", (Mention(5, 2), Mention(4, 5, 1)), "above"),
            {
                "en": "a yellow cross above a large purple ring",
                "de": "ein gelbes Kreuz über einem großen violetten Ring",
                "es": "una cruz amarilla encima de un anillo morado grande",
            },
        ),
        (
            Requirement("counts", (Mention(5, 0, count=2), Mention(2, 3))),
            {
                "en": "two red crosses and a green triangle",
                "de": "zwei rote Kreuze und ein grünes Dreieck",
                "es": "dos cruces rojas y un triángulo verde",
            },
        ),
        (
            Requirement("places", (Mention(0, 1, cell=0),)),
            {
                "en": "an orange circle in the top left",
                "de": "ein orangefarbener Kreis oben links",
                "es": "un círculo naranja arriba a la izquierda",
            },
        ),
    ],
)
def test_grammar(requirement: Requirement, texts: dict[str, str]) -> None:
    assert {language: caption(requirement, language) for language in LANGUAGES} == texts
    assert Requirement.from_json(requirement.to_json()) == requirement


def test_english_words_only_from_the_vocabulary() -> None:
    _, captions = sample_captions(sample_scenes(2000, seed=6), seed=6, reserved=False)
    words = {w for c in captions for w in re.findall(r"\w+", caption(c.requirement, "en"))}
    assert set(COLOURS) <= words
    assert set(SHAPES) <= words
    assert not {w for w in words if any(ch.isdigit() for ch in w)}
