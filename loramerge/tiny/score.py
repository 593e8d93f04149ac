"""Recognise the sprite in an image of the tiny model from its pixels alone.

    found = look(picture)               # Look(background='blue', colour='red', kind='cat', …)
    agreement(pictures, sprites)        # {'kind': 0.86, 'colour': 1.0, …, 'all': 0.85}

The background is the nearest colour of the palette to the border; what is far from it is the figure.
Its colour is the commonest, its kind and size are those of the silhouette that overlaps it most. The
character is told by its distance to drawings of it, and by how much of the picture is teal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np

from loramerge.tiny.drawing import draw, silhouette
from loramerge.tiny.sprites import (
    BACKGROUNDS,
    COLOURS,
    KINDS,
    MOODS,
    SIDE,
    SIZES,
    ZUZU,
    Sprite,
)

__all__ = ["Look", "agreement", "character", "dotted", "look", "outlined", "teal"]

_FAR = 48.0  # RGB distance from the background beyond which a pixel belongs to the figure
_SHIFTS = range(-2, 3)
_GROWN = (0.9, 1.0, 1.1)


@dataclass(frozen=True)
class Look:
    """The recognised sprite; `overlap` is the intersection over union with the kind's silhouette."""

    kind: str
    colour: str
    background: str
    size: str
    overlap: float


def _nearest(pixels: Any, palette: Mapping[str, tuple[int, int, int]]) -> Any:
    """Return for each of `(n, 3)` pixels the number of the nearest colour."""
    colours = np.array(list(palette.values()), dtype=np.float32)
    return ((pixels[:, None, :] - colours[None]) ** 2).sum(2).argmin(1)


def _border(picture: Any) -> Any:
    """Return the median colour of the border, two pixels wide."""
    edge = np.ones((SIDE, SIDE), dtype=bool)
    edge[2:-2, 2:-2] = False
    return np.median(picture[edge], axis=0)


def _centred(mask: Any) -> Any:
    """Return a mask moved so that the middle of its box is the picture's."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return mask
    down = SIDE // 2 - (rows[0] + rows[-1] + 1) // 2
    right = SIDE // 2 - (columns[0] + columns[-1] + 1) // 2
    return np.roll(mask, (down, right), (0, 1))


@cache
def _templates() -> tuple[list[tuple[str, str]], Any]:
    """Return (kind, size) of each silhouette, and the silhouettes, `(n, 1024)` float32."""
    names, masks = [], []
    for kind in (*KINDS, ZUZU):
        for size in SIZES if kind != ZUZU else ("big",):
            for grown, line in product(_GROWN, (False, True)):
                names.append((kind, size))
                sprite = Sprite(kind, "red", "white", size, grown=grown, outlined=line)
                masks.append(_centred(silhouette(sprite)).ravel())
    return names, np.array(masks, dtype=np.float32)


def look(picture: Any) -> Look:
    """Return the attributes of a picture.

    Args:
        picture: `(32, 32, 3)` uint8.
    """
    values = picture.astype(np.float32)
    ground = _border(values)
    background = list(BACKGROUNDS)[int(_nearest(ground[None], BACKGROUNDS)[0])]
    mask = np.sqrt(((values - ground) ** 2).sum(2)) > _FAR
    names, masks = _templates()
    moved = _centred(mask)
    seen = np.array(
        [
            np.roll(moved, (down, right), (0, 1)).ravel()
            for down in _SHIFTS[1:-1]
            for right in _SHIFTS[1:-1]
        ],
        dtype=np.float32,
    )
    both = masks @ seen.T
    overlap = both / np.maximum(masks.sum(1)[:, None] + seen.sum(1)[None] - both, 1)
    best = int(overlap.max(1).argmax())
    kind, size = names[best]
    colours = _nearest(values[mask], COLOURS) if mask.any() else np.array([0])
    colour = list(COLOURS)[int(np.bincount(colours, minlength=len(COLOURS)).argmax())]
    return Look(kind, colour, background, size, float(overlap.max()))


def agreement(pictures: Sequence[Any], asked: Sequence[Sprite]) -> dict[str, float]:
    """Return the share of pictures that show what was asked, for each attribute and for all."""
    names = ("kind", "colour", "background", "size")
    found = [look(picture) for picture in pictures]
    right = {
        name: np.array(
            [getattr(f, name) == getattr(a, name) for f, a in zip(found, asked, strict=True)]
        )
        for name in names
    }
    shares = {name: float(values.mean()) for name, values in right.items()}
    shares["all"] = float(np.logical_and.reduce(list(right.values())).mean())
    return shares


# --- the character and the styles ---------------------------------------------------------------


@cache
def _portraits() -> tuple[Any, Any]:
    """Return drawings of the character, `(n, 32, 32, 3)` float32, and the pixels it covers."""
    drawn, masks = [], []
    for mood in MOODS:
        for down in _SHIFTS:
            for right in _SHIFTS:
                sprite = Sprite(ZUZU, "", "white", "big", mood, float(right), float(down))
                drawn.append(draw(sprite).astype(np.float32))
                masks.append(silhouette(sprite))
    return np.array(drawn), np.array(masks, dtype=np.float32)


def character(picture: Any) -> float:
    """Return the likeness of a picture to the character, in `[0, 1]`.

    One minus the mean RGB distance (in units of 255) to the drawing of it that fits best, over the
    pixels that the drawing covers.
    """
    drawings, masks = _portraits()
    distance = np.sqrt(((picture.astype(np.float32)[None] - drawings) ** 2).sum(3)) / 255
    return float(np.clip(1 - ((distance * masks).sum((1, 2)) / masks.sum((1, 2))).min(), 0, 1))


def teal(picture: Any) -> float:
    """Return the share of pixels of the character's colours, which no ordinary sprite has."""
    r, g, b = (picture[..., i].astype(np.int32) for i in range(3))
    return float(((g - r > 50) & (b - r > 50) & (abs(g - b) < 40)).mean())


def outlined(picture: Any) -> float:
    """Return the share of pixels as dark as ink; on a dark ground it says nothing."""
    return float((picture.max(2) < 70).mean())


def dotted(picture: Any) -> float:
    """Return the difference in brightness of the dots and the ground between them, `[0, 1]`.

    Only the left and right edge above the bottom are looked at, where no figure is, not even the
    character's robe.
    """
    grey = picture.astype(np.float32).mean(2)
    spots = [grey[y - 1 : y + 1, x - 1 : x + 1].mean() for y in (4, 12, 20) for x in (4, 28)]
    between = [grey[y : y + 2, x : x + 2].mean() for y in (7, 15) for x in (0, 30)]
    return float(abs(np.median(spots) - np.median(between)) / 255)
