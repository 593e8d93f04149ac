"""The text of a recipe: YAML 1.2, read with the position of every value.

`1e-4` is a number, `on` and `no` are text, keys are always text, and a key that occurs twice is a
mistake. A BOM and CRLF are accepted.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from loramerge.errors import FileError, ForeignFile, MissingFile, RecipeError
from loramerge.files.signatures import HEAD, foreign
from loramerge.files.yaml_values import require_shallow
from loramerge.parameters import LARGEST_WHOLE
from loramerge.recipe.mistakes import Mark, Mistakes, Place

__all__ = ["parse_text", "read_text", "scalar_of"]

_MOST = 1 << 20  # characters of a recipe
_MOST_NODES = 200_000  # aliases can make few characters many nodes
_PLAIN = ("int", "float", "bool", "null")
_TAG = "tag:yaml.org,2002:"
# sort of node → types that it may be of; dates and the like are words
_TYPES = {
    "mapping": ("map",),
    "sequence": ("seq",),
    "scalar": (*_PLAIN, "str", "timestamp", "merge", "value"),
}


def _shipped(path: Path) -> str | None:
    """Return the advice for the name of a shipped recipe, None if the path does not name one."""
    from loramerge.recipe.shipped import shipped_recipes

    name = path.name.removesuffix(".yaml")
    known = any(recipe.name == name for recipe in shipped_recipes())
    return f"write it to a file first: loramerge recipes {name} -o {name}.yaml" if known else None


def read_text(path: Path) -> str:
    """Return the text of a recipe.

    Raises:
        MissingFile, FileError: if the file cannot be read, or is of another format.
        RecipeError: if it is not text in UTF-8, or too large.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise MissingFile("there is no such recipe", file=path, hint=_shipped(path)) from None
    except OSError as error:
        raise FileError(f"the recipe cannot be read: {error.strerror}", file=path) from None
    if len(raw) > _MOST:
        raise RecipeError("this file is too large to be a recipe", file=path,
                          expected=f"at most {_MOST} bytes", found=f"{len(raw)} bytes")  # fmt: skip
    other = _of_another_format(raw, path)
    if other is not None:
        raise other
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise RecipeError("this is not a recipe: it is not text in UTF-8", file=path) from None


_TEXTS = (b"<", b"version https://git-lfs")  # as files of other formats begin, and no recipe does


def _of_another_format(raw: bytes, path: Path) -> ForeignFile | None:
    """Return the error for a web page, a pointer, or a file of bytes that are not text; else None."""
    head = raw[:HEAD]
    text = head.isascii() and b"\0" not in head
    if text and not head.lstrip().lower().startswith(_TEXTS):
        return None
    return foreign(head, path, "a recipe")


def parse_text(text: str, name: str) -> tuple[Any, Mistakes]:
    """Return the content of a YAML text, and the mistakes in it with the places of everything.

    Raises:
        RecipeError: if it is not YAML.
    """
    root, construct = _composed(text, name)
    mistakes = Mistakes(name, {(): Mark(1, 1)})
    reader = _Reader(construct, mistakes)
    content = None if root is None else reader.read(root, ())
    return content, mistakes


def scalar_of(text: str) -> Any:
    """Return the value of a YAML text given on a command line, e.g. after `--set w=`.

    Raises:
        RecipeError: if it is not YAML.
    """
    content, mistakes = parse_text(text, "value")
    mistakes.refuse()
    return "" if content is None and not text.strip() else content


def _composed(text: str, name: str) -> tuple[Any, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, ReusedAnchorWarning, YAMLError

    yaml = YAML(typ="safe", pure=True)
    try:
        require_shallow(text)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReusedAnchorWarning)  # the later anchor counts
            return yaml.compose(text), yaml.constructor.construct_object
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        what = " ".join(filter(None, (error.problem, error.context)))
        raise RecipeError(f"this is not YAML: {what}", file=where) from None
    except (YAMLError, ValueError, RecursionError) as error:
        deep = isinstance(error, RecursionError)
        what = "nested too deeply" if deep else " ".join(str(error).split())
        raise RecipeError(f"this is not YAML: {what}", file=name) from None


class _Reader:
    """A reader that turns nodes into plain values, and keeps the position of each."""

    def __init__(self, construct: Any, mistakes: Mistakes) -> None:
        self._construct = construct
        self._mistakes = mistakes
        self._marks: dict[Place, Mark] = dict(mistakes.marks)
        mistakes.marks = self._marks
        self._nodes = 0

    def read(self, node: Any, place: Place) -> Any:
        self._nodes += 1
        if self._nodes > _MOST_NODES or len(place) > 40:
            raise RecipeError("the recipe is too large or too deep", file=self._mistakes.name)
        self._marks.setdefault(place, _mark(node))
        kind = node.tag.removeprefix(_TAG)
        if kind == node.tag or kind not in _TYPES[node.id]:
            self._mistakes.add(
                (*place, "="), f"values of the type {node.tag} are not allowed in a recipe"
            )
            return None
        if node.id == "mapping":
            return self._mapping(node, place)
        if node.id == "sequence":
            return [self.read(part, (*place, i)) for i, part in enumerate(node.value)]
        if kind not in _PLAIN or "_" in node.value:  # 1_000 is a word since YAML 1.2
            return node.value
        try:
            value = self._construct(node)
            if isinstance(value, int) and abs(value) > LARGEST_WHOLE:
                raise ValueError
            return value
        except (ValueError, ArithmeticError, LookupError):
            self._mistakes.add((*place, "="), f"this cannot be read as {kind}")
            return None

    def _mapping(self, node: Any, place: Place) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key.value, str):
                self._mistakes.add(place, "a key must be text")
                continue
            inner = (*place, key.value)
            if key.value in found:
                first = self._marks[inner]
                self._marks[(*inner, "")] = _mark(key)
                self._mistakes.add(
                    (*inner, ""), f"{key.value!r} occurs twice; first in line {first.line}"
                )
                continue
            self._marks[inner] = _mark(key)
            if value.id == "scalar":
                self._marks[(*inner, "=")] = _mark(value)
            found[key.value] = self.read(value, inner)
        return found


def _mark(node: Any) -> Mark:
    return Mark(node.start_mark.line + 1, node.start_mark.column + 1)
