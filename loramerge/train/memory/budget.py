"""Settings that need less and less memory, and the first of them that fits.

    rungs = ladder(options, memory)          # a generator: predicts memory only as far as needed
    rung = fitting(rungs, given)             # the first that fits

Each rung of the ladder adds one saving to the rung before; changes that save nothing are skipped. So
the first rung that fits changes the settings as little as possible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from loramerge.train.spec.settings import Precision

__all__ = ["Choice", "Options", "Rung", "fitting", "ladder", "smaller_resolutions"]

_LEAST = 0.99  # of the rung before: a smaller saving is not worth another result
_EIGHTHS = (7, 6, 5, 4)  # of the resolution; below half of it a base generates poor images


@dataclass(frozen=True)
class Choice:
    """The settings that memory depends on.

    Args:
        checkpointing: gradient checkpointing.
        precision: `no`, `bf16` or `fp16`.
        optimizer: a short name or an import path.
        resolution: pixels of a square's side.
    """

    checkpointing: bool
    precision: Precision
    optimizer: str
    resolution: int


@dataclass(frozen=True)
class Options:
    """The values to choose from, best first; a single value if the user gave it."""

    checkpointing: Sequence[bool]
    precision: Sequence[Precision]
    optimizer: Sequence[str]
    resolution: Sequence[int]

    @property
    def best(self) -> Choice:
        """The settings for unlimited memory."""
        return Choice(
            self.checkpointing[0], self.precision[0], self.optimizer[0], self.resolution[0]
        )


@dataclass(frozen=True)
class Rung:
    """Settings and the memory they need.

    Args:
        saving: the difference to the rung before, in words.
        memory: peak bytes.
    """

    choice: Choice
    saving: str
    memory: int

    def json(self) -> dict[str, Any]:
        """Return it as `--json` prints it."""
        chosen = self.choice
        return {
            "saving": self.saving,
            "memory": self.memory,
            "checkpointing": chosen.checkpointing,
            "precision": chosen.precision,
            "optimizer": chosen.optimizer,
            "resolution": chosen.resolution,
        }


# savings in order: first those that do not change the result, last those that change it most
_SAVINGS: tuple[tuple[str, Callable[[Any], str]], ...] = (
    ("checkpointing", lambda value: "checkpointing" if value else "no checkpointing"),
    ("precision", lambda value: "float32" if value == "no" else str(value)),
    ("optimizer", str),
    ("resolution", lambda value: f"{value} pixels"),
)


def ladder(options: Options, memory: Callable[[Choice], int]) -> Iterator[Rung]:
    """Yield the rungs, each of less memory than the one before.

    Args:
        memory: returns the peak bytes of settings; called only for the rungs that are taken.
    """
    choice = options.best
    last = memory(choice)
    yield Rung(choice, "as usual", last)
    for name, in_words in _SAVINGS:
        for value in getattr(options, name)[1:]:
            following = replace(choice, **{name: value})
            needed = memory(following)
            if needed <= _LEAST * last:
                choice, last = following, needed
                yield Rung(choice, in_words(value), needed)


def fitting(rungs: Iterable[Rung], given: int) -> Rung | None:
    """Return the first rung that takes no more bytes than are given, None if there is none."""
    return next((rung for rung in rungs if rung.memory <= given), None)


def smaller_resolutions(resolution: int, step: int) -> list[int]:
    """Return a resolution and those below it, down to half of it, in multiples of the buckets' step."""
    parts = (resolution * eighths // 8 // step * step for eighths in _EIGHTHS)
    found = {part for part in parts if step <= part < resolution}
    return [resolution, *sorted(found, reverse=True)]
