"""Pictures of sprites, and of nothing in particular."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from loramerge.tiny.shapes import ASIDE, FACE, HOOD, KINDS, RIGHT_HALF, Shape
from loramerge.tiny.sprites import BACKGROUNDS, COLOURS, MOODS, SIDE, SIZES, TEAL, ZUZU, Rgb, Sprite

__all__ = ["doodle", "draw", "silhouette"]

_FINER = 4  # drawn so much larger, then averaged
_SKIN: Rgb = (250, 225, 190)
_EMBLEM: Rgb = (255, 205, 20)
_SCARF: tuple[Rgb, Rgb] = ((235, 70, 40), (250, 245, 235))
_INK: Rgb = (25, 22, 38)
_PAPER: Rgb = (250, 250, 250)


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
    height, size = FACE.get(sprite.kind, (0.0, 1.0))
    unit = frame.radius * size
    x, y = frame.x + ASIDE.get(sprite.kind, 0.0) * frame.radius, frame.y + height * frame.radius
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
    canvas.paste(TEAL[1], mask=ImageChops.multiply(mask, _mask((RIGHT_HALF,), frame)))
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
    mask = _mask(HOOD if sprite.kind == ZUZU else KINDS[sprite.kind], frame)
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
    mask = _mask(HOOD if sprite.kind == ZUZU else KINDS[sprite.kind], _frame(sprite))
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
