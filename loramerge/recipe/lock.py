"""The lock of a recipe: a file beside it with the digests of all inputs, which refuses changed ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from loramerge.errors import CorruptFile, RecipeError, Setting
from loramerge.files.json_values import read_values
from loramerge.files.writer import write_bytes
from loramerge.library.known import digest_at
from loramerge.recipe.recipe import Recipe

__all__ = ["check_lock", "lock_path", "write_lock"]


def lock_path(recipe: Path) -> Path:
    """Return the path of the lock of a recipe."""
    return recipe.with_name(f"{recipe.stem}.lock.json")


def _files(recipe: Recipe) -> dict[str, Path]:
    """Return all files that the recipe reads, by their names in it."""
    found = {name: one.path for name, one in recipe.inputs.items()}
    for task in recipe.tasks.values():
        found |= task.files
    return dict(sorted(found.items()))


def write_lock(recipe: Recipe) -> Path:
    """Write the digests of all files that the recipe reads into its lock.

    Raises:
        RecipeError: if the recipe is not in a file.
    """
    if recipe.path is None:
        raise RecipeError("only a recipe in a file can be locked", file=recipe.name)
    pins = {name: {"name": p.name, "sha256": digest_at(p)} for name, p in _files(recipe).items()}
    raw = json.dumps({"version": 1, "inputs": pins}, indent=1, ensure_ascii=False)
    path = lock_path(recipe.path)
    write_bytes(path, raw.encode("utf-8", "replace"), force=True)
    return path


def check_lock(recipe: Recipe) -> None:
    """Refuse inputs that differ from those in the lock of the recipe, if there is a lock.

    Raises:
        RecipeError: naming every input that has changed.
        CorruptFile: if the lock cannot be read.
    """
    if recipe.path is None or not lock_path(recipe.path).exists():
        return
    path = lock_path(recipe.path)
    pins = _pins(path)
    changed = []
    for name, place in _files(recipe).items():
        if name not in pins:
            changed.append(f"{name}: not in the lock")
        elif (now := digest_at(place)) != pins[name]:
            changed.append(
                f"{name}: {place.name} has sha256 {now[:12]}…, locked {pins[name][:12]}…"
            )
    if changed:
        raise RecipeError(
            "the recipe is locked, and files that it reads have changed",
            file=path,
            mistakes=changed,
            hint=("restore the old files, or lock the new ones with ", Setting("lock", True)),
        )


def _pins(path: Path) -> Mapping[str, str]:
    try:
        content = read_values(path)
        return {str(name): str(pin["sha256"]) for name, pin in content["inputs"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CorruptFile(
            "the lock of the recipe cannot be read", file=path, hint="repair or delete it"
        ) from None
