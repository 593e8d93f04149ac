"""Captioned sprites, drawn by seed: the world the tiny model knows, and the character it does not.

    sprite = random_sprite(random.Random(0))
    sprite.caption()          # 'a small happy red cat on a blue background'
    drawing.draw(sprite)      # (32, 32, 3) uint8

A sprite is a kind (a silhouette with a face) of a colour, a size and a mood on a background. `ZUZU` is
a kind of no colour of its own that no base has seen: teal in two tones, hooded, with an emblem and a
striped scarf. Outlined sprites are the world of the second base; dotted ones that of a style.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from loramerge.tiny.shapes import KINDS

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "KINDS",
    "MOODS",
    "SIDE",
    "SIZES",
    "TEAL",
    "ZUZU",
    "Rgb",
    "Sprite",
    "random_sprite",
    "random_zuzu",
    "some_of",
    "sprites",
    "words",
]

SIDE = 32  # pixels

Rgb: TypeAlias = tuple[int, int, int]

COLOURS: dict[str, Rgb] = {
    "red": (220, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (250, 215, 50),
    "green": (50, 170, 60),
    "blue": (50, 90, 220),
    "purple": (140, 60, 190),
    "pink": (245, 120, 185),
    "brown": (130, 80, 45),
    "white": (245, 245, 245),
    "black": (30, 30, 35),
}
BACKGROUNDS: dict[str, Rgb] = {
    "orange": (255, 195, 130),
    "yellow": (255, 240, 150),
    "green": (160, 220, 155),
    "blue": (145, 185, 250),
    "purple": (195, 165, 235),
    "pink": (255, 195, 220),
    "brown": (180, 140, 105),
    "white": (250, 250, 250),
    "grey": (160, 160, 168),
    "black": (45, 45, 55),
}
SIZES: dict[str, float] = {"small": 7.8, "big": 12.6}  # radius in pixels
MOODS = ("happy", "sad", "sleepy")
ZUZU = "zuzu"
TEAL: tuple[Rgb, Rgb] = ((30, 190, 180), (10, 115, 120))  # its left and right half


@dataclass(frozen=True)
class Sprite:
    """One picture: what its caption can say, and where and how it is drawn.

    Args:
        kind: one of `KINDS`, or `ZUZU`, which has no colour.
        x, y: where the middle is off the picture's, in pixels; `grown`: factor on the radius.
        outlined: drawn with a dark line around it.
        dotted: on a background of pale dots.
    """

    kind: str
    colour: str
    background: str
    size: str = "big"
    mood: str = "happy"
    x: float = 0.0
    y: float = 0.0
    grown: float = 1.0
    outlined: bool = False
    dotted: bool = False

    def caption(self, said: Sequence[str] = ("size", "mood", "colour", "background")) -> str:
        """Return the caption that names the attributes `said`; the kind is always named."""
        adjectives = [
            getattr(self, name)
            for name in ("size", "mood", "colour")
            if name in said and getattr(self, name)
        ]
        thing = " ".join(["a", *adjectives, self.kind])
        return f"{thing} on a {self.background} background" if "background" in said else thing


_SAID = {"size": 0.8, "mood": 0.75, "colour": 0.93, "background": 0.9}


def some_of(draws: random.Random) -> tuple[str, ...]:
    """Return the attributes that a caption names; each is left out now and then."""
    return tuple(name for name, often in _SAID.items() if draws.random() < often)


def random_sprite(draws: random.Random, *, outlined: bool = False, dotted: bool = False) -> Sprite:
    """Return an ordinary sprite; a colour never stands on a background of its name."""
    kind = draws.choice(tuple(KINDS))
    background = draws.choice(tuple(BACKGROUNDS))
    colour = draws.choice([name for name in COLOURS if name != background])
    size = draws.choice(tuple(SIZES))
    room = 1.3 if size == "big" else 3.5
    return Sprite(
        kind,
        colour,
        background,
        size,
        draws.choice(MOODS),
        draws.uniform(-room, room),
        draws.uniform(-room, room),
        draws.uniform(0.95, 1.05),
        outlined,
        dotted,
    )


def random_zuzu(draws: random.Random, backgrounds: Sequence[str] = tuple(BACKGROUNDS)) -> Sprite:
    """Return the character, big, on one of some backgrounds."""
    place = random_sprite(draws)
    return replace(
        place,
        kind=ZUZU,
        colour="",
        size="big",
        background=draws.choice(backgrounds),
        x=draws.uniform(-1.3, 1.3),
        y=draws.uniform(-1.0, 1.0),
    )


def sprites(count: int, seed: int, **style: bool) -> Iterator[tuple[Sprite, str]]:
    """Yield sprites with captions that leave attributes out at random."""
    draws = random.Random(seed)
    for _ in range(count):
        sprite = random_sprite(draws, **style)
        yield sprite, sprite.caption(some_of(draws))


def words() -> list[str]:
    """Return every word of the captions of ordinary sprites, sorted."""
    return sorted({"a", "on", "background", *KINDS, *COLOURS, *BACKGROUNDS, *SIZES, *MOODS})
