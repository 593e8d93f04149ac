"""Mistakes in a recipe, collected with their places and reported together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from loramerge.errors import LoramergeError, Message, RecipeError, in_recipe, spelled

__all__ = ["Mark", "Mistakes", "Place"]

Place = tuple[str | int, ...]  # keys and positions from the top of the recipe


class Mark(NamedTuple):
    """A position in a text: line and column, counted from 1."""

    line: int
    column: int


@dataclass
class Mistakes:
    """The mistakes of a recipe, as far as it has been checked.

    Args:
        name: of the recipe's file.
        marks: place → where it stands in the text; empty for recipes that are not in a text.
        noted: how often something was noted, the same thing twice included.
    """

    name: str
    marks: Mapping[Place, Mark]
    found: dict[tuple[Mark, str], str] = field(default_factory=dict)
    noted: int = 0

    def add(self, place: Place, problem: str, hint: Message | None = None) -> None:
        """Note a mistake; the same one is noted once."""
        self.noted += 1
        mark = self.mark(place)
        where = f"{self.name}:{mark.line}:{mark.column}" if self.marks else _path(place)
        advice = f" ({spelled(hint, in_recipe)})" if hint else ""
        self.found[mark, problem] = f"{where}: {problem}{advice}"

    def caught(self, place: Place, error: LoramergeError) -> None:
        """Note an error."""
        parts = [error.problem]
        if error.module:
            parts.append(error.module)
        if error.found is not None:
            parts.append(f"found {error.found}")
        if error.expected is not None:
            parts.append(f"expected {error.expected}")
        self.add(place, "; ".join(parts), error.hint)

    def mark(self, place: Place) -> Mark:
        """Return the position of a place in the text, or of the nearest place around it."""
        while place and place not in self.marks:
            place = place[:-1]
        return self.marks.get(place, Mark(1, 1))

    def refuse(self) -> None:
        """Raise the mistakes, if there are any.

        Raises:
            RecipeError: with a line for each mistake, in the order of the text.
        """
        if not self.found:
            return
        lines = [self.found[key] for key in sorted(self.found, key=lambda key: key[0])]
        count = f"{len(lines)} mistakes" if len(lines) > 1 else "1 mistake"
        raise RecipeError(f"{count}, and nothing was done", file=self.name, mistakes=lines)


def _path(place: Place) -> str:
    return ".".join(str(part) for part in place) or "recipe"
