"""Pictures of shapes, drawn by formula, and the eight concepts that adapters teach.

    asked = Picture("ball", "red", "sand")
    asked.words()                       # ('ball', 'red', 'sand')
    draw(asked)                         # (24, 24, 3) float32 in [0, 1]
    CONCEPTS["stripy"].shown_on(asked)  # the same ball, with stripes

A picture has one value on each axis: kind, colour, ground, fill, pattern, frame. A concept is a value
that the base has never seen, with a word for it. Because each concept sits on one axis, any picture
with the concept can be drawn exactly, and so can pictures with several concepts of different axes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

SIDE = 24  # pixels
_FINER = 4  # drawn so much larger, then averaged
SHIFTS = range(-2, 3)

Rgb = tuple[float, float, float]

COLOURS: dict[str, Rgb] = {
    "red": (0.85, 0.15, 0.15),
    "yellow": (0.95, 0.8, 0.1),
    "green": (0.2, 0.6, 0.2),
    "blue": (0.15, 0.3, 0.85),
    "black": (0.1, 0.1, 0.12),
}
GROUNDS: dict[str, Rgb] = {
    "sand": (0.93, 0.86, 0.72),
    "sky": (0.7, 0.84, 0.97),
    "rose": (0.97, 0.77, 0.82),
    "fog": (0.72, 0.72, 0.75),
}
KINDS = ("ball", "box", "triangle", "diamond", "plus")
_OWN_COLOUR: dict[str, Rgb] = {"zuzu": (0.95, 0.5, 0.1), "kiki": (0.75, 0.2, 0.8)}
_NEW_COLOUR: dict[str, Rgb] = {"teal": (0.1, 0.75, 0.7)}
AXES = ("kind", "colour", "ground", "fill", "pattern", "frame")


@dataclass(frozen=True)
class Picture:
    """A picture by its values; an empty one is the plain value of its axis."""

    kind: str
    colour: str
    ground: str
    fill: str = ""
    pattern: str = ""
    frame: str = ""
    x: int = 0
    y: int = 0

    def words(self) -> tuple[str, ...]:
        """Return the caption: the word of each value; a kind with a colour of its own says none."""
        values = [getattr(self, axis) for axis in AXES]
        if self.kind in _OWN_COLOUR:
            values[1] = ""
        return tuple(value for value in values if value)


@dataclass(frozen=True)
class Concept:
    """A value that only an adapter knows."""

    word: str
    axis: str

    def shown_on(self, picture: Picture) -> Picture:
        """Return a picture with this concept."""
        return replace(picture, **{self.axis: self.word})

    def goes_with(self, other: Concept) -> bool:
        """Return whether a picture can show both: a kind of its own colour takes no other."""
        axes = {self.axis, other.axis}
        return len(axes) == 2 and axes != {"kind", "colour"}


CONCEPTS: dict[str, Concept] = {
    word: Concept(word, axis)
    for word, axis in (
        ("zuzu", "kind"),
        ("kiki", "kind"),
        ("teal", "colour"),
        ("stripy", "fill"),
        ("checky", "fill"),
        ("dotty", "pattern"),
        ("barred", "pattern"),
        ("framed", "frame"),
    )
}
WORDS = (*KINDS, *COLOURS, *GROUNDS, *CONCEPTS)


def values_of(axis: str) -> tuple[str, ...]:
    """Return all values of an axis, those of concepts included."""
    plain = {"kind": KINDS, "colour": tuple(COLOURS), "ground": tuple(GROUNDS)}.get(axis, ("",))
    return (*plain, *(c.word for c in CONCEPTS.values() if c.axis == axis))


def random_picture(draws: random.Random) -> Picture:
    """Return a picture without concepts."""
    return Picture(
        draws.choice(KINDS),
        draws.choice(tuple(COLOURS)),
        draws.choice(tuple(GROUNDS)),
        x=draws.choice(SHIFTS),
        y=draws.choice(SHIFTS),
    )


def random_pictures(count: int, seed: str, concepts: Sequence[str] = ()) -> list[Picture]:
    """Return so many pictures, with these concepts; the same for the same seed."""
    draws = random.Random(seed)
    found = [random_picture(draws) for _ in range(count)]
    for word in concepts:
        found = [CONCEPTS[word].shown_on(one) for one in found]
    return found


# --- drawing -----------------------------------------------------------------------------------


@cache
def _mask(kind: str, x: int, y: int) -> Any:
    """Return how much of each pixel a shape covers, `(24, 24, 1)` in `[0, 1]`."""
    middle = (SIDE - 1 / _FINER) / 2
    across = np.arange(SIDE * _FINER) / _FINER - middle
    u, v = np.meshgrid((across - x) / 7.5, (across - y) / 7.5)  # v grows downwards
    radius = np.hypot(u, v)
    inside = {
        "ball": radius < 0.95,
        "box": np.maximum(abs(u), abs(v)) < 0.82,
        "triangle": (v < 0.85) & (v > 2 * abs(u) - 0.95),
        "diamond": abs(u) + abs(v) < 1.1,
        "plus": (np.minimum(abs(u), abs(v)) < 0.32) & (np.maximum(abs(u), abs(v)) < 1),
        "zuzu": (radius < 1.0) & (np.hypot(u - 0.5, v) > 0.75),  # a crescent
        "kiki": (abs(abs(u) - abs(v)) < 0.42) & (np.maximum(abs(u), abs(v)) < 0.95),  # an X
    }[kind]
    cells = inside.astype(np.float32).reshape(SIDE, _FINER, SIDE, _FINER)
    return cells.mean((1, 3))[..., None]


@cache
def _where(pattern: str) -> Any:
    """Return the pixels of a pattern, `(24, 24, 1)` bool."""
    y, x = np.mgrid[:SIDE, :SIDE]
    return {
        "stripy": x % 4 < 2,
        "checky": (x // 3 + y // 3) % 2 == 0,
        "dotty": (x % 6 // 2 == 1) & (y % 6 // 2 == 1),
        "barred": y % 6 < 2,
        "framed": (np.minimum(x, SIDE - 1 - x) < 2) | (np.minimum(y, SIDE - 1 - y) < 2),
    }[pattern][..., None]


@cache
def draw(picture: Picture) -> Any:
    """Return the picture, `(24, 24, 3)` float32 in `[0, 1]`."""
    ground = np.broadcast_to(np.float32(GROUNDS[picture.ground]), (SIDE, SIDE, 3))
    if picture.pattern:
        ground = np.where(_where(picture.pattern), ground * np.float32(0.6), ground)
    colours = COLOURS | _NEW_COLOUR
    ink = np.float32(_OWN_COLOUR.get(picture.kind, colours[picture.colour]))
    fill = np.broadcast_to(ink, (SIDE, SIDE, 3))
    if picture.fill:
        fill = np.where(_where(picture.fill), fill, np.float32(0.97))
    mask = _mask(picture.kind, picture.x, picture.y)
    result = ground * (1 - mask) + fill * mask
    if picture.frame:
        result = np.where(_where(picture.frame), np.float32((0.25, 0.12, 0.3)), result)
    return result.astype(np.float32)


# --- looking -----------------------------------------------------------------------------------


def seen_on(axis: str, picture: Any, asked: Picture) -> str:
    """Return the value of an axis in a picture that has all other values as asked.

    It is that of the nearest drawing, over all values of the axis and all places of the figure.

    Args:
        picture: `(24, 24, 3)` in `[0, 1]`.
    """
    names, drawings = _candidates(axis, replace(asked, x=0, y=0))
    distance = ((drawings - np.float32(picture).reshape(1, -1)) ** 2).sum(1)
    return names[int(distance.argmin())]


@cache
def _candidates(axis: str, asked: Picture) -> tuple[tuple[str, ...], Any]:
    names, drawings = [], []
    for value in values_of(axis):
        for x in SHIFTS:
            for y in SHIFTS:
                names.append(value)
                drawings.append(draw(replace(asked, **{axis: value}, x=x, y=y)).ravel())
    return tuple(names), np.stack(drawings)


def shows(picture: Any, asked: Picture, axes: Sequence[str]) -> bool:
    """Return whether a picture has the values asked for on these axes."""
    return all(seen_on(axis, picture, asked) == getattr(asked, axis) for axis in axes)
