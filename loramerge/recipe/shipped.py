"""The recipes that come with loramerge: their names, purposes and texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import loramerge
from loramerge.errors import FileError, UsageError, suggestion

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
        text: of the whole file, comments included.
    """

    name: str
    text: str

    @property
    def title(self) -> str:
        """Its purpose: the first line of its comment."""
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
    """Return a recipe that comes with loramerge by its name.

    Raises:
        UsageError: if there is no recipe of this name, with the closest name.
        FileError: if they were not installed.
    """
    known = {recipe.name: recipe for recipe in shipped_recipes()}
    wanted = name.removesuffix(_SUFFIX)
    if wanted not in known:
        raise UsageError(
            f"no recipe {name!r} comes with loramerge",
            expected=", ".join(known),
            hint=suggestion(wanted, known),
        )
    return known[wanted]


def _folder() -> Traversable:
    """Return their folder: in the installed package, or in the repository it runs from."""
    from importlib.resources import files

    inside = files(loramerge) / _FOLDER
    if inside.is_dir():
        return inside
    repository = Path(loramerge.__file__).resolve().parents[1]
    beside = repository / _FOLDER
    if (repository / "pyproject.toml").is_file() and beside.is_dir():
        return beside
    raise FileError(
        "the recipes that come with loramerge are not installed", hint="install loramerge again"
    )
