"""The silhouettes of sprites, and where their faces are."""

from __future__ import annotations

import math
from typing import TypeAlias

__all__ = ["ASIDE", "FACE", "HOOD", "KINDS", "RIGHT_HALF", "Shape"]

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
FACE = {  # height and size of a face where it is not in the middle of the silhouette
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
    "zuzu": (0.0, 0.8),
}
ASIDE = {"fish": -0.35}  # a face that is not in the middle from left to right

HOOD: tuple[Shape, ...] = (
    (-0.86, -0.86, 0.86, 0.62),
    ((-0.5, -0.5), (0.3, -1.22), (0.62, -0.35)),
    ((-0.7, 0.1), (0.7, 0.1), (0.98, 1.02), (-0.98, 1.02)),
)
RIGHT_HALF: Polygon = ((0.0, -2.0), (2.0, -2.0), (2.0, 2.0), (0.0, 2.0))
