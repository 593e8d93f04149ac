"""The long tail: of many cases that are nearly alike, few run by default and all with `-m slow`.

LORAMERGE_TEST_SHARE=10 adds one in ten of the others, as CI does: drawn by a seed, LORAMERGE_TEST_SEED
or the date of the last commit, so that others run on another day and a failure can be repeated.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

import pytest

__all__ = ["SEED", "crossed", "drawn", "first", "seed_of_today", "tail"]

SEED = "LORAMERGE_TEST_SEED"
SHARE = "LORAMERGE_TEST_SHARE"


def seed_of_today() -> str:
    """The seed that the environment gives, or the date of the last commit, or 0 outside of git."""
    if os.environ.get(SEED):
        return os.environ[SEED]
    command = ["git", "log", "-1", "--format=%cs"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except OSError:
        return "0"
    return done.stdout.strip() or "0"


def drawn(name: str, seed: str) -> bool:
    """Return whether a seed draws a case; none is drawn where no share is asked for."""
    share = int(os.environ.get(SHARE) or 0)
    return share > 0 and int.from_bytes(sha256(f"{seed}:{name}".encode()).digest()[:4]) % share == 0


def tail(*values: Any, **options: Any) -> Any:
    """A set of parameters of the long tail."""
    return pytest.param(*values, marks=pytest.mark.long_tail, **options)


def first(count: int, values: Iterable[Any]) -> list[Any]:
    """The first values, which always run, and the rest as the long tail."""
    return [value if place < count else tail(value) for place, value in enumerate(values)]


def crossed(*axes: Iterable[Any]) -> list[Any]:
    """Every combination of values: a core that always runs, and the long tail.

    The core holds each combination of all axes but the last once, with the values of the last in
    turn, so that each value of each axis is in it.
    """
    lists = [list(axis) for axis in axes]
    found, seen = [], [set[int]() for _ in lists]
    for places in product(*(range(len(values)) for values in lists)):
        values = [one[place] for one, place in zip(lists, places, strict=True)]
        if sum(places[:-1]) % len(lists[-1]) == places[-1]:
            found.append(pytest.param(*values))
            for place, those in zip(places, seen, strict=True):
                those.add(place)
        else:
            found.append(tail(*values))
    assert all(len(those) == len(values) for those, values in zip(seen, lists, strict=True)), (
        "the last axis must not be longer than the others together: a value of it would be left out"
    )
    return found
