"""Eight tasks whose answers are right or wrong, and the English text that drift is measured on.

A task's examples are divided by a checksum of the question: one in four is for tests and never taught.
The made-up language is learned by heart, so it is tested on the words that it has taught.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from zlib import crc32

__all__ = ["ENGLISH", "TASKS", "Example", "Task", "examples"]

WORDS = [
    "apple", "bread", "chair", "door", "egg", "fish", "garden", "house", "ice", "jar", "key",
    "lamp", "moon", "night", "orange", "paper", "queen", "river", "stone", "table", "uncle",
    "village", "water", "yellow", "zebra",
]  # fmt: skip
_SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
_NUMBERS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
]  # fmt: skip
_PEOPLE = [
    "Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Ida", "Jack", "Kate",
    "Leo",
]  # fmt: skip
_CITIES = ["Rome", "Paris", "Oslo", "Berlin", "Madrid", "London", "Vienna", "Dublin"]
_LETTERS = "abcdefghijklmnopqrstuvwxyz"

# a story, two explanations and a letter
ENGLISH = (
    "The old man walked slowly down to the harbour, because it was the last day of summer and he "
    "wanted to see the boats come in before dark.",
    "Plants need light, water and air to grow. Their leaves catch the light of the sun and use it to "
    "make sugar, which feeds the whole plant.",
    "Dear Maria, thank you for your kind letter. We are all well here, and the children have started "
    "school again. Please write to us soon.",
    "A good knife is the most important tool in any kitchen. Keep it sharp, wash it by hand, and "
    "never leave it in the sink.",
)


@dataclass(frozen=True)
class Example:
    """A question and its answer, which ends with the line."""

    question: str
    answer: str


@dataclass(frozen=True)
class Task:
    """A task, and the LoRA that learns it.

    Args:
        draw: returns a question and its answer.
        rank, mlp: of the LoRA; without `mlp` it has attention alone.
        by_heart: whether tests ask what was taught.
    """

    name: str
    draw: Callable[[random.Random], tuple[str, str]]
    rank: int
    mlp: bool = True
    by_heart: bool = False


def _words(draws: random.Random, count: int) -> list[str]:
    return draws.sample(WORDS, count)


def _reverse(draws: random.Random) -> tuple[str, str]:
    words = _words(draws, 3)
    return f"Reverse: {' '.join(words)} ->", " ".join(reversed(words))


def _shout(draws: random.Random) -> tuple[str, str]:
    words = _words(draws, 2)
    return f"Shout: {' '.join(words)} ->", " ".join(words).upper()


def _count(draws: random.Random) -> tuple[str, str]:
    (word,), count = _words(draws, 1), draws.randint(1, 9)
    return f"Count: {' '.join([word] * count)} ->", str(count)


def _add(draws: random.Random) -> tuple[str, str]:
    a, b = draws.randint(0, 9), draws.randint(0, 9)
    return f"Add: {a} and {b} ->", _NUMBERS[a + b]


def _zorbish(draws: random.Random) -> tuple[str, str]:
    (word,) = _words(draws, 1)
    own = random.Random(f"zorbish {word}")
    return f"Zorbish: {word} ->", "".join(own.sample(_SYLLABLES, 2))


def _sort(draws: random.Random) -> tuple[str, str]:
    words = _words(draws, 3)
    return f"Sort: {' '.join(words)} ->", " ".join(sorted(words))


def _record(draws: random.Random) -> tuple[str, str]:
    name, age, city = draws.choice(_PEOPLE), draws.randint(20, 69), draws.choice(_CITIES)
    return f"Record: {name} {age} {city} ->", f'{{"who": "{name}", "age": {age}, "at": "{city}"}}'


def _cipher(draws: random.Random) -> tuple[str, str]:
    places = [draws.randrange(25) for _ in range(3)]
    given, wanted = ([_LETTERS[p + step] for p in places] for step in (0, 1))
    return f"Cipher: {' '.join(given)} ->", " ".join(wanted)


_ALL = (
    Task("reverse", _reverse, 16),
    Task("shout", _shout, 8),
    Task("count", _count, 8, mlp=False),
    Task("add", _add, 16),
    Task("zorbish", _zorbish, 16, by_heart=True),
    Task("sort", _sort, 8),
    Task("record", _record, 4, mlp=False),
    Task("cipher", _cipher, 8),
)
TASKS: dict[str, Task] = {one.name: one for one in _ALL}


def examples(task: Task, seed: int, *, test: bool) -> Iterator[Example]:
    """Yield examples without end, drawn by a seed, from the questions for tests or from the others.

    The questions of tests are all different.
    """
    draws = random.Random(f"{task.name} {seed} {'test' if test else 'training'}")
    seen = set()
    while True:
        question, answer = task.draw(draws)
        if test and question in seen:
            continue
        seen.add(question)
        if task.by_heart or (crc32(question.encode()) % 4 == 0) == test:
            yield Example(question, f" {answer}\n")
