"""The inputs of a recipe: files by name, pinned by their digest where the recipe states one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loramerge.errors import LoramergeError, Message, NotFound, suggestion
from loramerge.library.known import KnownFiles, digest_at
from loramerge.library.paths import below
from loramerge.recipe.mistakes import Mistakes, Place
from loramerge.recipe.variables import substitute

__all__ = ["Input", "read_inputs"]

_WORDS = ("path", "sha256", "recipe")
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True)
class Input:
    """A named file.

    Args:
        sha256: the digest it must have; None accepts any.
        recipe: the recipe that makes it if it is not found; only recipes in headers have one.
    """

    name: str
    path: Path
    sha256: str | None = None
    recipe: Mapping[str, Any] | None = None


def read_inputs(
    content: Any,
    root: Path,
    variables: Mapping[str, Any],
    paths: Mapping[str, str],
    mistakes: Mistakes,
) -> dict[str, Input]:
    """Return the inputs of a recipe, found and checked against their digests.

    Args:
        paths: input → path, instead of the recipe's.
    """
    if not isinstance(content, Mapping):
        mistakes.add(("inputs",), "inputs must be a mapping of names to paths")
        return {}
    found, known = {}, KnownFiles()
    for name, stated in content.items():
        place: Place = ("inputs", name)
        value = substitute(stated, place, variables, mistakes)
        fields = {"path": value} if isinstance(value, str) else value
        if not isinstance(fields, Mapping):
            mistakes.add(
                place, f"the input {name!r} must be a path, or a mapping with path and sha256"
            )
            continue
        for problem, hint, where in _problems(name, fields):
            mistakes.add((*place, *where), problem, hint)
        if isinstance(fields.get("path"), str):
            one = _located(name, fields, place, root, paths.get(name), known, mistakes)
            found[name] = one
    return found


def _problems(name: str, fields: Mapping[str, Any]) -> Iterator[tuple[str, str | None, Place]]:
    if not name.strip() or any(c in name for c in ":/\\[]{}"):
        yield f"{name!r} is not a valid name of an input", None, ()
    for word in fields:
        if word not in _WORDS:
            yield f"an input has no {word!r}", suggestion(word, _WORDS), (word,)
    if not isinstance(fields.get("path"), str) or not fields["path"].strip():
        yield f"the input {name!r} needs a path", None, ("path",)
    digest = fields.get("sha256")
    if digest is not None and not (isinstance(digest, str) and _DIGEST.fullmatch(digest)):
        yield "sha256 must be 64 hexadecimal digits", None, ("sha256", "=")
    if not isinstance(fields.get("recipe", {}), Mapping):
        yield "the recipe of an input must be a mapping", None, ("recipe",)


def _hint(error: LoramergeError) -> Message | None:
    """Return the advice for an input that was not found: a name like it, or another path."""
    if isinstance(error.hint, str) and error.hint.startswith("loramerge "):
        return "correct its path, which starts from the recipe's folder, or give it with --input"
    return error.hint


def _located(
    name: str,
    fields: Mapping[str, Any],
    place: Place,
    root: Path,
    instead: str | None,
    known: KnownFiles,
    mistakes: Mistakes,
) -> Input:
    """Return an input, found at its path, by its name in the library, or by its digest."""
    digest = fields.get("sha256")
    digest = digest.lower() if isinstance(digest, str) and _DIGEST.fullmatch(digest) else None
    text = instead if instead is not None else fields["path"]
    path, error = _found(text, None if instead is not None else root, known)
    if path is None and digest is not None and instead is None:
        path = known.with_digest(digest, Path(text).name)
    if path is None:
        assert error is not None
        mistakes.add(
            (*place, "="), f"the input {name!r} was not found: {error.problem}", _hint(error)
        )
        return Input(name, Path(text), digest, fields.get("recipe"))
    if digest is not None:
        _check_digest(name, path, digest, place, mistakes)
    return Input(name, path, digest, fields.get("recipe"))


def _check_digest(name: str, path: Path, digest: str, place: Place, mistakes: Mistakes) -> None:
    try:
        now = digest_at(path)
    except LoramergeError as error:
        mistakes.caught(place, error)
        return
    if now != digest:
        mistakes.add(
            (*place, "sha256"),
            f"the input {name!r} has changed: {path.name} has sha256 {now[:12]}…, "
            f"and the recipe states {digest[:12]}…",
            "restore the old file, or state the new digest",
        )


def _found(
    text: str, root: Path | None, known: KnownFiles
) -> tuple[Path | None, LoramergeError | None]:
    """Return the adapter or base with a path or name, or the error if there is none.

    A file with exactly this path comes before one whose suffix was left out.
    """
    found: list[Path] = []
    first: LoramergeError | None = None
    for holds in ("adapters", "bases"):
        try:
            found.append(known.find(text, holds, root))
        except LoramergeError as error:
            if first is None or (isinstance(first, NotFound) and not isinstance(error, NotFound)):
                first = error
    exact = below(root, text)
    return next((path for path in found if path == exact), found[0] if found else None), first
