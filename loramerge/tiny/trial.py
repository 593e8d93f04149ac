"""Measure a tiny model: generate images for prompts and score them.

    with applied(pipe, [(lm.load("zuzu"), 1.0)]):
        print(trial(pipe))

The prompts and seeds are always the same, so that trials compare.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np

from loramerge.tiny.adapters import HELD, SEEN
from loramerge.tiny.pictures import drawn
from loramerge.tiny.score import agreement, character, dotted, outlined, teal
from loramerge.tiny.sprites import MOODS, ZUZU, Sprite, random_sprite

__all__ = ["Trial", "ordinary", "portraits", "trial"]


@dataclass(frozen=True)
class Trial:
    """Scores of one model.

    Args:
        follow: shares of ordinary prompts whose kind, colour, background and size are right, and
            `all` of them at once.
        seen, held: likeness to the character on backgrounds it was trained on, and on others.
        teal: share of the character's colours in its pictures.
        ink, dots: what tells outlined pictures and dotted ones, on ordinary prompts.
    """

    follow: dict[str, float]
    seen: float
    held: float
    teal: float
    ink: float
    dots: float


def ordinary(count: int, seed: int = 99) -> list[Sprite]:
    """Return sprites to ask for."""
    draws = random.Random(seed)
    return [random_sprite(draws) for _ in range(count)]


def portraits(count: int, backgrounds: tuple[str, ...]) -> list[Sprite]:
    """Return portraits of the character to ask for, on backgrounds in turn."""
    return [
        Sprite(ZUZU, "", backgrounds[i % len(backgrounds)], "big", MOODS[i % len(MOODS)])
        for i in range(count)
    ]


def trial(pipe: Any, count: int = 64, *, steps: int = 12, seed: int = 0) -> Trial:
    """Ask a pipeline for `count` ordinary pictures and `count` portraits, and score them."""

    def pictures(asked: list[Sprite], first: int, *said: str) -> list[Any]:
        prompts = [sprite.caption(said) if said else sprite.caption() for sprite in asked]
        return drawn(pipe, prompts, range(first, first + len(prompts)), steps=steps)

    asked = ordinary(count)
    found = pictures(asked, seed)
    seen, held = (
        pictures(portraits(count // 2, grounds), seed + 1000, "mood", "background")
        for grounds in (SEEN, HELD)
    )
    light = [
        p for p, s in zip(found, asked, strict=True) if "black" not in (s.background, s.colour)
    ]
    return Trial(
        follow=agreement(found, asked),
        seen=float(np.mean([character(picture) for picture in seen])),
        held=float(np.mean([character(picture) for picture in held])),
        teal=float(np.mean([teal(picture) for picture in (*seen, *held)])),
        ink=float(np.mean([outlined(picture) for picture in light])),
        dots=float(np.median([dotted(picture) for picture in found])),
    )
