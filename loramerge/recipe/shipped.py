"""The recipes that come with loramerge: their names, what they are for, and their text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import loramerge
from loramerge.errors import FileError, UsageError, nearest

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

__all__ = ["Shipped", "shipped_recipe", "shipped_recipes"]

_FOLDER = "recipes"
_SUFFIX = ".yaml"


@dataclass(frozen=True)
class Shipped:
    """A recipe that comes with loramerge.

    Args:
        name: of its file, without the suffix.
        text: as it stands there, comments included.
    """

    name: str
    text: str

    @property
    def title(self) -> str:
        """What it is for: the first line of its comment."""
        return self.text.partition("\n")[0].lstrip("# ").strip()


def shipped_recipes() -> list[Shipped]:
    """Return the recipes that come with loramerge, by name.

    Raises:
        FileError: if they were not installed.
    """
    found = [
        Shipped(place.name.removesuffix(_SUFFIX), place.read_text("utf-8"))
        for place in _folder().iterdir()
        if place.name.endswith(_SUFFIX)
    ]
    return sorted(found, key=lambda recipe: recipe.name)


def shipped_recipe(name: str) -> Shipped:
    """Return one of them by its name.

    Raises:
        UsageError: if there is none of this name, with the nearest that there is.
        FileError: if they were not installed.
    """
    known = {recipe.name: recipe for recipe in shipped_recipes()}
    wanted = name.removesuffix(_SUFFIX)
    if wanted not in known:
        close = nearest(wanted, known)
        raise UsageError(
            f"no recipe {name!r} comes with loramerge",
            expected=", ".join(known),
            hint=f"did you mean {close}?" if close else None,
        )
    return known[wanted]


def _folder() -> Traversable:
    """Return where they lie: in the installed package, or in the repository it is run from."""
    from importlib.resources import files

    inside = files(loramerge) / _FOLDER
    if inside.is_dir():
        return inside
    repository = Path(loramerge.__file__).resolve().parents[1]
    beside = repository / _FOLDER
    if (repository / "pyproject.toml").is_file() and beside.is_dir():
        return beside
    raise FileError("the recipes that come with loramerge were not installed", hint="install again")
