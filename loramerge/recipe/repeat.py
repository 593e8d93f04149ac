"""Repeating a file: the recipe in its header run again, and what came out compared with it."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loramerge import __version__
from loramerge.adapter.load import load
from loramerge.adapter.metadata import RECIPE_KEY, VERSION_KEY
from loramerge.adapter.source import open_source
from loramerge.checkpoint.files import find_files
from loramerge.errors import FormatError, LoramergeError, MissingFile, NotFound, RecipeError, listed
from loramerge.events import Note, Warn
from loramerge.files.digest import tensors_sha256
from loramerge.files.tensors import Tensor
from loramerge.library.lookup import find
from loramerge.recipe.inputs import digest_at, find_by_digest
from loramerge.recipe.recipe import Recipe, recipe_of
from loramerge.recipe.run import run_recipe
from loramerge.recipe.supermerger import recipe_of as supermerger_recipe
from loramerge.recipe.variables import escaped
from loramerge.steps.parameters import Context
from loramerge.steps.provenance import recipe_in
from loramerge.verbs.diff import diff_adapters

__all__ = ["Repeated", "is_output", "recipe_of_file", "repeat"]

_MEMORY = 1 << 22  # elements compared at a time


@dataclass
class Repeated:
    """How a file compares with what its recipe makes now.

    Args:
        verdict: `same file`, `same tensors` (the header differs), or `same weights to …`.
        distance: ‖now − then‖ / ‖then‖ of what it does to the weights; 0 for the same tensors.
        output: where the repetition was kept, None if nowhere.
        recipe: what was run.
    """

    path: str
    verdict: str
    distance: float
    output: str | None
    recipe: Mapping[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def differs(self) -> bool:
        """Whether the tensors are not the same."""
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


def is_output(path: Path) -> bool:
    """Say whether a path is that of an output, rather than of a recipe."""
    return path.is_dir() or path.suffix.lower() == ".safetensors"


def recipe_of_file(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the recipe in a file's header, and what it cannot say.

    The metadata that sd-webui-supermerger leaves counts as one.

    Raises:
        RecipeError: if the header does not say what made the file.
        LoramergeError: if the file cannot be read.
    """
    if not path.exists():
        raise MissingFile("no such file", file=path)
    for metadata in _headers(path):
        if RECIPE_KEY in metadata:
            found = recipe_in(metadata)
            if found is None:
                raise RecipeError("the recipe in the header cannot be understood", file=path)
            version = metadata.get(VERSION_KEY, __version__)
            notes = []
            if version != __version__:
                notes.append(f"written by loramerge {version}; this is {__version__}")
            return found, notes
        merged = supermerger_recipe(metadata)
        if merged is not None:
            return merged
    raise RecipeError(
        "the file does not say what made it",
        file=path,
        expected=f"a header with {RECIPE_KEY}, as loramerge writes it without --strip",
    )


def _headers(path: Path) -> Iterator[Mapping[str, str]]:
    """Yield the metadata of every file that a file or folder consists of."""
    if path.is_dir():
        with suppress(LoramergeError):
            for file in find_files(path).weights:
                yield file.open()[1]
    with suppress(FormatError):
        yield open_source(path).metadata


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
        inputs: input → path, where it is not found by its name and digest.
        output: where to keep the repetition; nothing is kept without.

    Raises:
        NotFound: naming the inputs that cannot be found.
        RecipeError: if the file does not say what made it.
        LoramergeError: of the steps.
    """
    recipe, notes = recipe_of_file(path)
    with tempfile.TemporaryDirectory(prefix="loramerge-") as scratch:
        place = _Place(path, Path(scratch), dict(inputs or {}), notes, context)
        target = output if output is not None else Path(scratch, "again", path.name)
        _make(recipe, target, place, force=force)
        for note in notes:
            context.notify(Note(note))
        verdict, distance = _compared(path, target, context)
    kept = None if output is None else str(output)
    return Repeated(str(path), verdict, distance, kept, recipe, notes)


@dataclass
class _Place:
    """Where inputs are looked for, and where those that had to be made again are put."""

    path: Path
    scratch: Path
    given: dict[str, str]
    notes: list[str]
    context: Context


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
            inputs[name] = escaped(str(found.absolute()))
    if missing:
        raise NotFound(
            f"{len(missing)} inputs of its recipe cannot be found",
            file=place.path,
            module=listed(missing, 6),
            hint="--input NAME=PATH says where one is; folders of the library are searched",
        )
    steps = {  # a header may be a stranger's: where it would save counts for nothing
        name: {word: value for word, value in step.items() if word != "save"}
        for name, step in recipe["steps"].items()
        if isinstance(step, Mapping)
    }
    last = _last(steps)
    steps[last]["save"] = escaped(str(target.absolute()))
    content = {"version": recipe.get("version"), "inputs": inputs, "steps": steps}
    found_recipe: Recipe = recipe_of(content, place.scratch)
    run_recipe(found_recipe, place.context, force=force)


def _last(steps: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the name of the step that makes the result: the one written last."""
    if not steps:
        raise RecipeError("the recipe in the header has no steps")
    return list(steps)[-1]


def _input(name: str, entry: Mapping[str, Any], place: _Place) -> Path | None:
    """Return where an input is, made again if it says how, or None."""
    digest, wanted = entry.get("sha256"), Path(str(entry.get("path", name))).name
    if name in place.given:
        found = find(place.given[name], "adapters")
        if digest is not None and digest_at(found) != digest:
            place.notes.append(f"{name}: {found} is not the file that was used")
        return _under_its_name(found, wanted, place)
    candidate = _searched(wanted, digest, place)
    if candidate is not None:
        return _under_its_name(candidate, wanted, place)
    if not isinstance(entry.get("recipe"), Mapping) or recipe_problem(entry["recipe"]):
        return None
    again = place.scratch / f"input-{len(list(place.scratch.iterdir()))}" / wanted
    try:
        _make(entry["recipe"], again, place)
    except NotFound:
        return None
    if digest is not None and digest_at(again) != digest:
        place.notes.append(f"{name} was made again, and is not the same file as then")
    else:
        place.notes.append(f"{name} was gone and has been made again")
    return again


def recipe_problem(recipe: Mapping[str, Any]) -> bool:
    """Say whether a nested recipe is none."""
    return not isinstance(recipe.get("inputs"), Mapping) or not isinstance(
        recipe.get("steps"), Mapping
    )


def _searched(wanted: str, digest: str | None, place: _Place) -> Path | None:
    """Look for a file beside the output, in the current folder, and in the library."""
    here = [folder / wanted for folder in (place.path.absolute().parent, Path.cwd())]
    with suppress(LoramergeError):
        here.append(find(wanted, "adapters"))
    with suppress(LoramergeError):
        here.append(find(wanted, "bases"))
    for candidate in here:
        if candidate.exists() and (digest is None or _digest(candidate) == digest):
            return candidate
    return None if digest is None else find_by_digest(digest, wanted)


def _digest(path: Path) -> str | None:
    try:
        return digest_at(path)
    except (LoramergeError, OSError):
        return None


def _under_its_name(found: Path, wanted: str, place: _Place) -> Path:
    """Return a path to a file under the name it had then, since headers hold names."""
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


# --- comparing ----------------------------------------------------------------------------------------


def _compared(then: Path, now: Path, context: Context) -> tuple[str, float]:
    """Return a verdict in words, and the relative distance of the weights."""
    if digest_at(then) == digest_at(now):
        return "same file", 0.0
    old, new = _tensors(then), _tensors(now)
    if tensors_sha256(old) == tensors_sha256(new):
        return "same tensors; the headers differ", 0.0
    distance = _distance(then, now, old, new, context)
    if distance == 0.0:
        distance = math.ulp(0.0)  # the same change of the weights, in other tensors
    return f"same weights to {distance:.2g}" if distance < 1 else "different weights", distance


def _tensors(path: Path) -> Mapping[str, Tensor]:
    """Return all tensors of an adapter or a checkpoint, by name (and file, in folders)."""
    if path.is_dir():
        with suppress(LoramergeError):
            return {
                f"{file.relative}:{name}": tensor
                for file in find_files(path).weights
                for name, tensor in file.open()[0].items()
            }
    return open_source(path).tensors


def _distance(
    then: Path,
    now: Path,
    old: Mapping[str, Tensor],
    new: Mapping[str, Tensor],
    context: Context,
) -> float:
    """Return how far the two are apart: by ΔW for adapters, by their tensors otherwise."""
    try:
        a, b = load(then), load(now)
        if a.deltas and b.deltas:
            return diff_adapters(a, b, context).comparison.total.distance
    except LoramergeError as error:
        context.notify(Warn(f"compared tensor by tensor: {error.problem}"))
    if old.keys() != new.keys() or any(old[n].shape != new[n].shape for n in old):
        return math.inf
    apart = whole = 0.0
    for name, tensor in old.items():
        one, other = (t.numpy().reshape(-1) for t in (tensor, new[name]))
        for start in range(0, one.size, _MEMORY):
            x = one[start : start + _MEMORY].astype("float64")
            y = other[start : start + _MEMORY].astype("float64")
            apart += float(((x - y) ** 2).sum())
            whole += float((x**2).sum())
    return math.sqrt(apart / whole) if whole else math.inf
