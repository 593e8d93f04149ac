"""What a run is to be so that it fits into a memory: choices from the best to the most frugal.

    rungs = ladder(options, memory)          # counts memory only as far as it is asked
    rung = fitting(rungs, given)             # the first that fits

Each rung of the ladder takes one saving more than the one before it, and a saving that saves nothing is
none: so whatever is chosen is the best that fits, and nothing is given up that need not be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from loramerge.train.spec.settings import Precision

__all__ = ["Choice", "Options", "Rung", "fitting", "ladder", "smaller_resolutions"]

_LEAST = 0.99  # of the rung before: what saves less is not worth another result
_EIGHTHS = (7, 6, 5, 4)  # of the resolution; below half of it a base draws no whole picture


@dataclass(frozen=True)
class Choice:
    """What memory depends on.

    Args:
        checkpointing: activations are computed again in the backward pass.
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
    """What there is to choose from, of each the best first; one alone where the user has said it."""

    checkpointing: Sequence[bool]
    precision: Sequence[Precision]
    optimizer: Sequence[str]
    resolution: Sequence[int]

    @property
    def best(self) -> Choice:
        """The run as it is where memory does not matter."""
        return Choice(
            self.checkpointing[0], self.precision[0], self.optimizer[0], self.resolution[0]
        )


@dataclass(frozen=True)
class Rung:
    """A choice and what it takes.

    Args:
        saving: what it has beyond the rung before, in words.
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


# what is given up, in this order: first what changes no result, last what changes it most
_SAVINGS: tuple[tuple[str, Callable[[Any], str]], ...] = (
    ("checkpointing", lambda value: "checkpointing" if value else "no checkpointing"),
    ("precision", lambda value: "float32" if value == "no" else str(value)),
    ("optimizer", str),
    ("resolution", lambda value: f"{value} pixels"),
)


def ladder(options: Options, memory: Callable[[Choice], int]) -> Iterator[Rung]:
    """Yield the rungs, each of less memory than the one before.

    Args:
        memory: gives the peak bytes of a choice; it is asked no further than rungs are taken.
    """
    choice = options.best
    last = memory(choice)
    yield Rung(choice, "as usual", last)
    for name, said in _SAVINGS:
        for value in getattr(options, name)[1:]:
            following = replace(choice, **{name: value})
            needed = memory(following)
            if needed <= _LEAST * last:
                choice, last = following, needed
                yield Rung(choice, said(value), needed)


def fitting(rungs: Iterable[Rung], given: int) -> Rung | None:
    """Return the first rung that takes no more bytes than are given, None if there is none."""
    return next((rung for rung in rungs if rung.memory <= given), None)


def smaller_resolutions(resolution: int, step: int) -> list[int]:
    """Return a resolution and those below it, down to half of it, in multiples of the buckets' step."""
    parts = (resolution * eighths // 8 // step * step for eighths in _EIGHTHS)
    found = {part for part in parts if step <= part < resolution}
    return [resolution, *sorted(found, reverse=True)]
