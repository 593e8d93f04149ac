"""The world of the tiny model, and its scores: right on drawings, and not by accident."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("PIL")

from loramerge.tiny import score, sprites
from loramerge.tiny.drawing import doodle, draw
from loramerge.tiny.sprites import (
    BACKGROUNDS,
    COLOURS,
    KINDS,
    MOODS,
    SIZES,
    ZUZU,
    Sprite,
    random_sprite,
    random_zuzu,
)


def some(count: int, seed: int = 7, **style: bool) -> list[Sprite]:
    draws = random.Random(seed)
    return [random_sprite(draws, **style) for _ in range(count)]


def zuzus(count: int, seed: int = 8) -> list[Sprite]:
    draws = random.Random(seed)
    return [random_zuzu(draws) for _ in range(count)]


# --- sprites ------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_sprites_captions_and_pictures() -> None:
    first, again, other = (list(sprites.sprites(20, seed)) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    for (sprite, _), (same, _) in zip(first, again, strict=True):
        assert np.array_equal(draw(sprite), draw(same))


def test_captions_name_what_is_drawn_and_leave_some_out() -> None:
    sprite = Sprite("cat", "red", "blue", "small", "happy")
    assert sprite.caption() == "a small happy red cat on a blue background"
    assert sprite.caption(("colour",)) == "a red cat"
    captions = [caption for _, caption in sprites.sprites(300, 0)]
    for word in (*KINDS, *COLOURS, *BACKGROUNDS, *SIZES, *MOODS):
        assert any(f" {word} " in f"{caption} " for caption in captions), word
    assert 0.05 < np.mean(["background" not in caption for caption in captions]) < 0.15
    assert {w for caption in captions for w in caption.split()} == set(sprites.words())


def test_no_colour_stands_on_a_background_of_its_name() -> None:
    assert all(sprite.colour != sprite.background for sprite in some(500))


def test_the_character_is_a_kind_that_no_caption_of_the_base_names() -> None:
    sprite = zuzus(1)[0]
    assert sprite.caption(("mood", "background")).startswith(f"a {sprite.mood} zuzu on a ")
    assert ZUZU not in sprites.words()


def test_pictures_are_small_and_differ_by_every_attribute() -> None:
    plain = Sprite("cat", "red", "blue", "small", "happy")
    picture = draw(plain)
    assert picture.shape == (32, 32, 3) and picture.dtype == np.uint8
    for name, value in {
        "kind": "box", "colour": "green", "background": "pink", "size": "big", "mood": "sad",
        "x": 3.0, "outlined": True, "dotted": True,
    }.items():  # fmt: skip
        assert not np.array_equal(draw(replace(plain, **{name: value})), picture), name


def test_doodles_repeat_and_are_no_sprites() -> None:
    one, same, other = (doodle(random.Random(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


# --- scores -------------------------------------------------------------------------------------


@pytest.mark.parametrize("outlined", [False, True])
def test_drawings_score_as_what_they_are(outlined: bool) -> None:
    asked = some(150, outlined=outlined)
    found = score.agreement([draw(sprite) for sprite in asked], asked)
    assert min(found.values()) > 0.97


def test_other_drawings_do_not() -> None:
    asked = some(150)
    found = score.agreement([draw(sprite) for sprite in some(150, seed=9)], asked)
    assert found["kind"] < 0.2 and found["colour"] < 0.25 and found["background"] < 0.25
    assert found["size"] < 0.65 and found["all"] < 0.03


def swapped(sprite: Sprite) -> Sprite:
    return replace(sprite, colour=sprite.background, background=sprite.colour)


WRONG: dict[str, tuple[str, Callable[[Sprite], Sprite]]] = {
    "another kind": ("kind", lambda s: replace(s, kind="box" if s.kind != "box" else "star")),
    "another colour": (
        "colour",
        lambda s: replace(s, colour="green" if s.colour != "green" else "red"),
    ),
    "another background": (
        "background",
        lambda s: replace(s, background="pink" if s.background != "pink" else "blue"),
    ),
    "another size": ("size", lambda s: replace(s, size="big" if s.size == "small" else "small")),
}


@pytest.mark.parametrize("name", WRONG)
def test_one_wrong_attribute_is_seen_in_it_and_in_all(name: str) -> None:
    attribute, change = WRONG[name]
    asked = some(60)
    found = score.agreement([draw(change(sprite)) for sprite in asked], asked)
    assert found[attribute] < 0.05
    assert found["all"] < 0.05
    others = {key: share for key, share in found.items() if key not in (attribute, "all")}
    assert min(others.values()) > 0.9


@pytest.mark.parametrize("level", [5.0, 9.0])
def test_noise_of_some_levels_changes_little(level: float) -> None:
    noise = np.random.default_rng(0)
    asked = some(100)
    pictures = [
        np.clip(draw(s) + noise.normal(0, level, (32, 32, 3)), 0, 255).astype(np.uint8)
        for s in asked
    ]
    assert score.agreement(pictures, asked)["all"] > 0.9


def test_an_empty_picture_is_some_answer() -> None:
    found = score.look(np.full((32, 32, 3), 250, dtype=np.uint8))
    assert found.background == "white" and found.overlap == 0


def test_the_character_and_its_teal_are_told_from_everything_else() -> None:
    ours, others = [draw(s) for s in zuzus(40)], [draw(s) for s in some(80)]
    assert np.mean([score.character(p) for p in ours]) > 0.85
    assert max(score.character(p) for p in others) < 0.6
    assert min(score.teal(p) for p in ours) > 0.15
    assert np.mean([score.teal(p) for p in others]) < 0.005
    blue = [draw(replace(s, kind="cat", colour="blue")) for s in zuzus(10)]
    assert max(score.teal(p) for p in blue) < 0.01


def test_styles_are_told() -> None:
    light = [s for s in some(200) if s.background != "black" and s.colour != "black"]

    def shares(function: Callable[[Any], float], **style: bool) -> list[float]:
        return [function(draw(replace(s, **style))) for s in light]

    assert np.mean(shares(score.outlined, outlined=True)) > 4 * np.mean(shares(score.outlined))
    assert np.median(shares(score.dotted, dotted=True)) > 0.1
    assert np.median(shares(score.dotted)) == 0
