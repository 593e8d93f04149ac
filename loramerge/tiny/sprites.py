"""Captioned sprites, drawn by seed: the world the tiny model knows, and the character it does not.

    sprite = random_sprite(random.Random(0))
    sprite.caption()          # 'a small happy red cat on a blue background'
    draw(sprite)              # (32, 32, 3) uint8

A sprite is a kind (a silhouette with a face) of a colour, a size and a mood on a background. `ZUZU` is
a kind of no colour of its own that no base has seen: teal in two tones, hooded, with an emblem and a
striped scarf. Outlined sprites are the world of the second base; dotted ones that of a style.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "KINDS",
    "MOODS",
    "SIDE",
    "SIZES",
    "TEAL",
    "ZUZU",
    "Sprite",
    "doodle",
    "draw",
    "random_sprite",
    "random_zuzu",
    "silhouette",
    "sprites",
    "words",
]

SIDE = 32  # pixels
_FINER = 4  # drawn so much larger, then averaged

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

# Shapes in units of the radius, y downwards: an ellipse is its box, a polygon its corners.
Ellipse: TypeAlias = tuple[float, float, float, float]
Polygon: TypeAlias = tuple[tuple[float, float], ...]
Shape: TypeAlias = Ellipse | Polygon


def _turned(corners: int, outer: float, inner: float) -> Polygon:
    """Return a star whose points lie on a circle of radius `outer`, its dents on `inner`."""
    angles = [math.pi * (i / corners - 0.5) for i in range(2 * corners)]
    radii = [inner if i % 2 else outer for i in range(2 * corners)]
    return tuple((r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True))


KINDS: dict[str, tuple[Shape, ...]] = {
    "ball": ((-0.92, -0.92, 0.92, 0.92),),
    "box": (((-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)),),
    "triangle": (((0.0, -1.0), (1.02, 0.85), (-1.02, 0.85)),),
    "star": (_turned(5, 1.1, 0.5),),
    "heart": (
        (-0.98, -0.85, 0.06, 0.2),
        (-0.06, -0.85, 0.98, 0.2),
        ((-0.9, -0.05), (0.0, -0.4), (0.9, -0.05), (0.0, 1.0)),
    ),
    "diamond": (((0.0, -1.05), (0.85, 0.0), (0.0, 1.05), (-0.85, 0.0)),),
    "drop": ((-0.72, -0.42, 0.72, 1.0), ((0.0, -1.15), (0.66, 0.06), (-0.66, 0.06))),
    "cloud": (
        (-1.1, -0.25, -0.1, 0.65),
        (-0.62, -0.75, 0.5, 0.5),
        (0.05, -0.4, 1.1, 0.65),
        ((-0.7, 0.2), (0.7, 0.2), (0.7, 0.65), (-0.7, 0.65)),
    ),
    "cat": (
        (-0.92, -0.6, 0.92, 0.92),
        ((-0.88, 0.1), (-0.86, -1.05), (-0.1, -0.5)),
        ((0.88, 0.1), (0.86, -1.05), (0.1, -0.5)),
    ),
    "bunny": (
        (-0.76, -0.35, 0.76, 1.0),
        (-0.6, -1.15, -0.12, 0.2),
        (0.12, -1.15, 0.6, 0.2),
    ),
    "fish": ((-1.1, -0.68, 0.55, 0.68), ((0.2, 0.0), (1.1, -0.72), (1.1, 0.72))),
    "ghost": (
        (-0.75, -1.0, 0.75, 0.5),
        ((-0.75, -0.25), (0.75, -0.25), (0.75, 1.0), (0.38, 0.66), (0.0, 1.0), (-0.38, 0.66),
         (-0.75, 1.0)),
    ),
    "robot": (
        ((-0.6, -0.75), (0.6, -0.75), (0.6, 0.3), (-0.6, 0.3)),
        ((-0.9, 0.3), (0.9, 0.3), (0.9, 0.95), (-0.9, 0.95)),
        ((-0.1, -1.1), (0.1, -1.1), (0.1, -0.7), (-0.1, -0.7)),
        (-0.24, -1.2, 0.24, -0.85),
    ),
}  # fmt: skip
_FACE = {  # height and size of a face where it is not in the middle of the silhouette
    "triangle": (0.3, 0.85),
    "star": (0.02, 0.75),
    "heart": (-0.15, 1.0),
    "drop": (0.3, 0.9),
    "cloud": (0.1, 1.0),
    "cat": (0.15, 1.0),
    "bunny": (0.35, 0.9),
    "fish": (-0.05, 0.9),
    "ghost": (-0.3, 0.95),
    "robot": (-0.25, 0.75),
    ZUZU: (0.0, 0.8),
}
_ASIDE = {"fish": -0.35}  # a face that is not in the middle from left to right

_HOOD: tuple[Shape, ...] = (
    (-0.86, -0.86, 0.86, 0.62),
    ((-0.5, -0.5), (0.3, -1.22), (0.62, -0.35)),
    ((-0.7, 0.1), (0.7, 0.1), (0.98, 1.02), (-0.98, 1.02)),
)
_RIGHT_HALF: Polygon = ((0.0, -2.0), (2.0, -2.0), (2.0, 2.0), (0.0, 2.0))
_SKIN: Rgb = (250, 225, 190)
_EMBLEM: Rgb = (255, 205, 20)
_SCARF: tuple[Rgb, Rgb] = ((235, 70, 40), (250, 245, 235))
_INK: Rgb = (25, 22, 38)
_PAPER: Rgb = (250, 250, 250)


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


# --- drawing -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Frame:
    """The position of a sprite's units on the enlarged canvas."""

    x: float
    y: float
    radius: float

    def points(self, shape: Shape) -> list[tuple[float, float]]:
        pairs: Any = shape
        if not isinstance(shape[0], tuple):
            pairs = (shape[:2], shape[2:])
        return [(self.x + a * self.radius, self.y + b * self.radius) for a, b in pairs]


def _frame(sprite: Sprite) -> _Frame:
    middle = SIDE / 2
    return _Frame(
        (middle + sprite.x) * _FINER,
        (middle + sprite.y) * _FINER,
        SIZES[sprite.size] * sprite.grown * _FINER,
    )


def _mask(shapes: Sequence[Shape], frame: _Frame) -> Any:
    mask = Image.new("L", (SIDE * _FINER,) * 2, 0)
    pen = ImageDraw.Draw(mask)
    for shape in shapes:
        _paint(pen, shape, frame, 255)
    return mask


def _paint(pen: Any, shape: Shape, frame: _Frame, ink: Any) -> None:
    points = frame.points(shape)
    if isinstance(shape[0], tuple):
        pen.polygon(points, fill=ink)
    else:
        pen.ellipse((*points[0], *points[1]), fill=ink)


def _thicker(mask: Any, sprite: Sprite) -> Any:
    """Return a silhouette and the line around it."""
    line = _FINER * (3 if sprite.size == "big" else 2) // 2
    return mask.filter(ImageFilter.MaxFilter(2 * line + 1))


def _face(pen: Any, sprite: Sprite, frame: _Frame, ink: Rgb) -> None:
    height, size = _FACE.get(sprite.kind, (0.0, 1.0))
    unit = frame.radius * size
    x, y = frame.x + _ASIDE.get(sprite.kind, 0.0) * frame.radius, frame.y + height * frame.radius
    line = max(1, round(0.13 * unit))
    for side in (-0.34, 0.34):
        eye_x, eye_y = x + side * unit, y - 0.14 * unit
        if sprite.mood == "sleepy":
            pen.line((eye_x - 0.18 * unit, eye_y, eye_x + 0.18 * unit, eye_y), ink, line)
        else:
            r = 0.15 * unit
            pen.ellipse((eye_x - r, eye_y - 1.2 * r, eye_x + r, eye_y + 1.2 * r), fill=ink)
    wide, low, tall = 0.3 * unit, y + 0.28 * unit, 0.2 * unit
    if sprite.mood == "happy":
        pen.arc((x - wide, low - 1.6 * tall, x + wide, low + tall), 10, 170, ink, line)
    elif sprite.mood == "sad":
        pen.arc((x - wide, low - 0.1 * tall, x + wide, low + 2.4 * tall), 190, 350, ink, line)
    else:
        r = 0.1 * unit
        pen.ellipse((x - r, low - 0.4 * r, x + r, low + 1.6 * r), fill=ink)


def _zuzu(canvas: Any, sprite: Sprite, frame: _Frame, mask: Any) -> None:
    """Draw the character: two-tone hood and robe, face, emblem on the brow, striped scarf."""
    canvas.paste(TEAL[0], mask=mask)
    canvas.paste(TEAL[1], mask=ImageChops.multiply(mask, _mask((_RIGHT_HALF,), frame)))
    pen = ImageDraw.Draw(canvas)
    _paint(pen, (-0.58, -0.42, 0.58, 0.5), frame, _SKIN)
    _paint(pen, ((0.0, -0.98), (0.3, -0.64), (0.0, -0.3), (-0.3, -0.64)), frame, _EMBLEM)
    stripes, left, width = 5, -0.9, 0.36
    for i in range(stripes):
        a, b = left + i * width, left + (i + 1) * width
        _paint(pen, ((a, 0.44), (b, 0.44), (b, 0.76), (a, 0.76)), frame, _SCARF[i % 2])
    _face(pen, sprite, frame, _INK)


def _dots(canvas: Any, background: Rgb) -> None:
    """Draw pale dots (dark grounds: paler ones) in a lattice of eight pixels."""
    pen = ImageDraw.Draw(canvas)
    ink = tuple(round(c + 0.75 * (255 - c)) for c in background)
    if min(background) > 230:
        ink = (190, 190, 205)
    step, r = 8 * _FINER, 2.2 * _FINER
    for row in range(4):
        for column in range(4):
            x, y = (column + 0.5) * step, (row + 0.5) * step
            pen.ellipse((x - r, y - r, x + r, y + r), fill=ink)


def _light(colour: Rgb) -> float:
    return 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]


def draw(sprite: Sprite) -> Any:
    """Return the picture, `(32, 32, 3)` uint8."""
    frame = _frame(sprite)
    background = BACKGROUNDS[sprite.background]
    canvas = Image.new("RGB", (SIDE * _FINER,) * 2, background)
    if sprite.dotted:
        _dots(canvas, background)
    mask = _mask(_HOOD if sprite.kind == ZUZU else KINDS[sprite.kind], frame)
    if sprite.outlined:
        canvas.paste(_INK, mask=_thicker(mask, sprite))
    if sprite.kind == ZUZU:
        _zuzu(canvas, sprite, frame, mask)
    else:
        colour = COLOURS[sprite.colour]
        canvas.paste(colour, mask=mask)
        _face(ImageDraw.Draw(canvas), sprite, frame, _INK if _light(colour) > 110 else _PAPER)
    return np.asarray(canvas.reduce(_FINER))


def silhouette(sprite: Sprite) -> Any:
    """Return the pixels that a sprite covers by at least half, its line included, `(32, 32)` bool."""
    mask = _mask(_HOOD if sprite.kind == ZUZU else KINDS[sprite.kind], _frame(sprite))
    if sprite.outlined:
        mask = _thicker(mask, sprite)
    return np.asarray(mask.reduce(_FINER)) >= 128


def doodle(draws: random.Random) -> Any:
    """Return a picture of anything, `(32, 32, 3)` uint8: shapes and stripes of any colours.

    No sprite looks like it. The VAE sees doodles too, so that it can draw what no base has seen.
    """

    def colour() -> Rgb:
        return draws.randrange(256), draws.randrange(256), draws.randrange(256)

    canvas = Image.new("RGB", (SIDE * _FINER,) * 2, draws.choice((*BACKGROUNDS.values(), colour())))
    pen = ImageDraw.Draw(canvas)
    for size in sorted((draws.uniform(2, 14) for _ in range(draws.randint(2, 7))), reverse=True):
        x, y = draws.uniform(6, SIDE - 6) * _FINER, draws.uniform(6, SIDE - 6) * _FINER
        frame = _Frame(x, y, size * _FINER)
        if size < 9 and draws.random() < 0.25:
            inks, height = (colour(), colour()), draws.uniform(0.25, 0.5)
            count = draws.randint(3, 6)
            for i in range(count):
                a, b = 2 * i / count - 1, 2 * (i + 1) / count - 1
                _paint(
                    pen, ((a, -height), (b, -height), (b, height), (a, height)), frame, inks[i % 2]
                )
            continue
        mask = _mask(KINDS[draws.choice(tuple(KINDS))], frame)
        if draws.random() < 0.3:
            canvas.paste(draws.choice((_INK, colour())), mask=mask.filter(ImageFilter.MaxFilter(9)))
        canvas.paste(colour(), mask=mask)
        if draws.random() < 0.3:
            half = frame.x if draws.random() < 0.5 else 0.0
            side = Image.new("L", canvas.size, 0)
            ImageDraw.Draw(side).rectangle((half, 0 if half else frame.y, *canvas.size), fill=255)
            canvas.paste(colour(), mask=ImageChops.multiply(mask, side))
        if size > 6 and draws.random() < 0.5:
            face = Sprite("ball", "red", "white", mood=draws.choice(MOODS))
            _face(pen, face, frame, draws.choice((_INK, _PAPER, colour())))
    return np.asarray(canvas.reduce(_FINER))
