"""Repetition of a file: the recipe in its header is run again, and the two files are compared."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loramerge.errors import NotFound, RecipeError, Setting, UsageError, listed
from loramerge.events import Note
from loramerge.files.temporary import scratch_folder
from loramerge.library.known import KnownFiles, digest_at
from loramerge.library.lookup import find
from loramerge.recipe.comparison import compare_files
from loramerge.recipe.header import recipe_of_file
from loramerge.recipe.recipe import recipe_of
from loramerge.recipe.run import run_recipe
from loramerge.recipe.saves import WRITTEN
from loramerge.recipe.variables import escape
from loramerge.steps.parameters import Context
from loramerge.steps.recorded import require_inputs

__all__ = ["Repeated", "repeat"]


@dataclass
class Repeated:
    """A file, compared with the new result of its recipe.

    Args:
        verdict: `same file`, `same tensors` (the header differs), or `same weights to …`.
        distance: ‖now − then‖ / ‖then‖ of the change of the weights; 0 for the same tensors.
        output: where the repetition was kept, None if nowhere.
        recipe: that of the header, which was run.
    """

    path: str
    verdict: str
    distance: float
    output: str | None
    recipe: Mapping[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def differs(self) -> bool:
        """True if any tensor differs."""
        return self.distance > 0.0

    def json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        return {
            "outputs": [] if self.output is None else [self.output],
            "path": self.path,
            "verdict": self.verdict,
            "differs": self.differs,
            "relative_distance": self.distance,
            "notes": self.notes,
            "recipe": self.recipe,
        }


def repeat(
    path: Path,
    *,
    inputs: Mapping[str, str] | None = None,
    output: Path | None = None,
    force: bool = False,
    context: Context = Context(),
) -> Repeated:
    """Run the recipe of a file again and compare.

    Args:
        inputs: input → path, for inputs that are not found by name and digest.
        output: path for the repetition; without it nothing is kept.

    Raises:
        UsageError: for an input that the recipe does not have.
        NotFound: naming the inputs that cannot be found.
        RecipeError: if there is no recipe in the file's header.
        LoramergeError: of the steps.
    """
    folder = path.absolute().parent.parent
    if path.is_file() and (folder / "model_index.json").is_file():
        raise UsageError(
            "this file is a part of a checkpoint, which can only be repeated as a whole",
            file=path,
            hint=f"give the folder: {folder}",
        )
    recipe, notes = recipe_of_file(path)
    require_inputs(recipe, inputs or {}, path)
    with scratch_folder("loramerge") as scratch:
        place = _Place(path, scratch, dict(inputs or {}), notes, context)
        target = output if output is not None else Path(scratch, "again", path.name)
        _make(recipe, target, place, force=force)
        for note in notes:
            context.notify(Note(note))
        verdict, distance = compare_files(path, target, context)
    kept = None if output is None else str(output)
    return Repeated(str(path), verdict, distance, kept, recipe, notes)


@dataclass
class _Place:
    """The file to repeat, the places where its inputs may be, and a folder for those made again."""

    path: Path
    scratch: Path
    given: dict[str, str]
    notes: list[str]
    context: Context
    known: KnownFiles = field(default_factory=KnownFiles)


def _make(recipe: Mapping[str, Any], target: Path, place: _Place, *, force: bool = False) -> None:
    """Run a recipe of one result, saved to a path.

    Raises:
        NotFound: naming the inputs that cannot be found.
    """
    missing: list[str] = []
    inputs: dict[str, Any] = {}
    for name, entry in recipe["inputs"].items():
        found = _input(name, entry, place) if isinstance(entry, Mapping) else None
        if found is None:
            shown = entry.get("path", name) if isinstance(entry, Mapping) else name
            missing.append(f"{name} ({shown})" if name != shown else name)
        else:
            inputs[name] = escape(str(found.absolute()))
    if missing:
        raise NotFound(
            "an input of its recipe was not found"
            if len(missing) == 1
            else f"{len(missing)} inputs of its recipe were not found",
            file=place.path,
            module=listed(missing, 6),
            hint=(
                "give its place with ",
                Setting("input", "NAME=PATH"),
                ", or add its folder to the library",
            ),
        )
    steps = {
        name: _without_places(step)
        for name, step in recipe["steps"].items()
        if isinstance(step, Mapping)
    }
    last = _last(steps)
    steps[last]["save"] = escape(str(target.absolute()))
    content = {"version": recipe.get("version"), "inputs": inputs, "steps": steps}
    # what refuses these now once left them out, copied or wrote them
    context = replace(
        place.context, skip_unknown=True, allow_nonfinite=True, allow_loss=True, allow_again=True
    )
    run_recipe(recipe_of(content, place.scratch), context, force=force)


def _without_places(step: Mapping[str, Any]) -> dict[str, Any]:
    """Return a step without the paths it writes to, because a header may come from anyone."""
    return {
        word: {name: one for name, one in value.items() if name not in WRITTEN}
        if isinstance(value, Mapping)
        else value
        for word, value in step.items()
        if word != "save"
    }


def _last(steps: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the name of the step that makes the result, the last one."""
    if not steps:
        raise RecipeError("the recipe in the header has no steps")
    return list(steps)[-1]


def _input(name: str, entry: Mapping[str, Any], place: _Place) -> Path | None:
    """Return the path of an input, None if it is not found; one that states its recipe is made again."""
    digest, wanted = entry.get("sha256"), Path(str(entry.get("path", name))).name
    if name in place.given:
        found = find(place.given[name], "adapters")
        if digest is not None and digest_at(found) != digest:
            place.notes.append(f"{name}: {found} is not the file that was used")
        return _under_its_name(found, wanted, place)
    folders = (place.path.absolute().parent, Path.cwd())
    candidate = place.known.search(wanted, digest, folders)
    if candidate is not None:
        return _under_its_name(candidate, wanted, place)
    if not isinstance(entry.get("recipe"), Mapping) or not _is_recipe(entry["recipe"]):
        return None
    again = place.scratch / f"input-{len(list(place.scratch.iterdir()))}" / wanted
    try:
        _make(entry["recipe"], again, place)
    except NotFound:
        return None
    if digest is not None and digest_at(again) != digest:
        place.notes.append(
            f"{name} was not found and was made again; it is not the same file as before"
        )
    else:
        place.notes.append(f"{name} was not found and was made again")
    return again


def _is_recipe(content: Mapping[str, Any]) -> bool:
    return all(isinstance(content.get(word), Mapping) for word in ("inputs", "steps"))


def _under_its_name(found: Path, wanted: str, place: _Place) -> Path:
    """Return a path that ends in the former name of the file, because headers contain names."""
    if found.name == wanted:
        return found
    link = place.scratch / f"named-{len(list(place.scratch.iterdir()))}" / wanted
    link.parent.mkdir()
    for way in (os.symlink,) if found.is_dir() else (os.symlink, os.link, shutil.copyfile):
        try:
            way(found.absolute(), link)
        except OSError:
            continue
        return link
    return found
