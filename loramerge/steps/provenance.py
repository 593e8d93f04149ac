"""The recipe in the header of a file, which can be run again.

An adapter keeps the step that computed it, and a step keeps its inputs. Followed to the files this
is a graph, which is written as a recipe: inputs by name and digest, never by folder, and the
parameters that change results. An input that loramerge made contributes the recipe of its own
header, so that a result can be traced back through files that no longer exist.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loramerge import __version__
from loramerge.adapter import Adapter
from loramerge.adapter.metadata import RECIPE_KEY, VERSION_KEY
from loramerge.algebra.weights import weight_content
from loramerge.checkpoint import Checkpoint
from loramerge.checkpoint.files import CheckpointFiles
from loramerge.files.digest import PLACEHOLDER
from loramerge.files.json_values import values_in
from loramerge.library.digests import digest_of, digest_of_files
from loramerge.parameters import item_word
from loramerge.steps.parameters import stated
from loramerge.steps.references import Reference

__all__ = [
    "RESULT",
    "FileInput",
    "Made",
    "Node",
    "base_input",
    "files_input",
    "header_entries",
    "input_of",
    "length_is_known",
    "made_of",
    "nodes_of",
    "recipe_in",
    "recipe_text",
    "step_of",
]

RESULT = "result"  # name of the last step in a recipe written into a header
_MOST = 1 << 18  # bytes of an input's own recipe that are still carried along


@dataclass(frozen=True)
class FileInput:
    """A file or folder that something was made from.

    Args:
        root: the folder digests of several files are relative to, None for a single file.
        recipe: the recipe in its own header.
    """

    path: Path
    files: tuple[Path, ...]
    root: Path | None
    recipe: str | None = None

    @property
    def name(self) -> str:
        """The name without folders; bytes that are not Unicode become `?`."""
        return self.path.name.encode("utf-8", "replace").decode()

    def digest(self) -> str:
        """Return the digest of the file, or of the folder's files together."""
        if self.root is None:
            return digest_of(self.files[0])
        return digest_of_files(self.root, self.files)


@dataclass(frozen=True)
class Made:
    """A step that computed a result.

    Args:
        content: its parameters as a recipe has them; inputs stand as `FileInput` or `Made`.
    """

    verb: str
    content: Mapping[str, Any] = field(hash=False)


Node = FileInput | Made
Given = Mapping[tuple[str, str], Node | None]


def input_of(adapter: Adapter) -> Node | None:
    """Return an adapter as an input of a step, None if its origin is not known."""
    maker = adapter.maker
    if isinstance(maker, Made):
        return maker
    if not isinstance(maker, Path) or not adapter.info.files:
        return None
    files = adapter.info.files
    root = None if len(files) == 1 else maker if maker.is_dir() else maker.parent
    return FileInput(maker, files, root, adapter.info.metadata.get(RECIPE_KEY))


def made_of(adapter: Adapter) -> Made | None:
    """Return the step that made an adapter; one that was just read was converted, if to itself."""
    maker = adapter.maker
    if isinstance(maker, Made):
        return maker
    read = input_of(adapter)
    return None if read is None else Made("convert", {"adapter": {"adapter": read}})


def base_input(checkpoint: Checkpoint) -> FileInput:
    """Return a base as an input of a step."""
    return files_input(checkpoint.path, checkpoint.files)


def files_input(path: Path, files: CheckpointFiles) -> FileInput:
    """Return the files of a checkpoint, or of a part of one, as an input of a step."""
    recipes = (file.open()[1].get(RECIPE_KEY) for file in files.weights)
    return FileInput(
        path,
        tuple(file.path for file in files.weights),
        files.root if len(files.weights) > 1 else None,
        next((recipe for recipe in recipes if recipe), None),
    )


def step_of(verb: str, parameters: Any, given: Given) -> Made | None:
    """Return the step that parameters describe, None if the origin of an input is not known.

    Args:
        given: (`adapters` or `bases`, name in the parameters) → what it stands for.
    """
    if any(node is None for node in given.values()):
        return None
    content: dict[str, Any] = {}
    for one, value in stated(parameters):
        if one.doc.result:
            values = value if one.many else (value,)
            if one.kind is float:  # a whole number given from Python says the same
                values = [v if isinstance(v, Mapping) else float(v) for v in values]
            if one.refers:
                holds = str(one.doc.completes)
                values = [_said(v, holds, given) if one.names(v) else v for v in values]
            content[one.word] = list(values) if one.many else values[0]
    return Made(verb, content)


def _said(value: Any, holds: str, given: Given) -> Any:
    """Return a reference in the form of a recipe, with its input instead of the name."""
    if not isinstance(value, Reference):
        return given[holds, value]
    weight, holds = weight_content(value.weight), value.holds(holds)
    found: dict[str, Any] = {item_word(holds): given[holds, value.name]}
    return found if weight == 1.0 else found | {"weight": weight}


def length_is_known(made: Made | None) -> bool:
    """Return whether the length of `recipe_text` is known before the digests are.

    Inputs of one name become one if their digests agree, so it is known only if all names differ.
    """
    names = [node.name for node in nodes_of(made) if isinstance(node, FileInput)]
    return len(set(names)) == len(names)


def nodes_of(made: Made | None) -> list[Node]:
    """Return a step and everything it depends on, each once and after its own inputs.

    Without recursion, and each node once: steps that use one result twice would double the work, and
    a chain of steps may be thousands long.
    """
    found: dict[int, Node] = {}
    stack: list[Node] = [] if made is None else [made]
    while stack:
        node = stack[-1]
        waiting = [n for n in _inputs(node) if id(n) not in found]
        if waiting and id(node) not in found:
            stack += reversed(waiting)
        else:
            found.setdefault(id(stack.pop()), node)
    return list(found.values())


def _inputs(value: Any) -> list[Node]:
    """Return the inputs that a step, or a part of its content, names, in order."""
    content = value.content if isinstance(value, Made) else value
    parts: Iterable[Any] = ()
    if isinstance(content, Mapping):
        parts = content.values()
    elif isinstance(content, (list, tuple)):
        parts = content
    return [
        node
        for part in parts
        for node in ([part] if isinstance(part, (FileInput, Made)) else _inputs(part))
    ]


def recipe_text(
    made: Made,
    written: Mapping[str, Any],
    digest: Callable[[FileInput], str] = lambda one: one.digest(),
) -> str:
    """Return the canonical JSON of the recipe whose last step made something.

    Args:
        written: how the result is written: dialect and type, or nothing.
        digest: gives the digests; a placeholder of the same length may stand for one.
    """
    inputs: dict[str, dict[str, Any]] = {}
    steps: dict[str, dict[str, Any]] = {}
    names: dict[int, str] = {}

    def spelled(value: Any) -> Any:
        if isinstance(value, (FileInput, Made)):
            return names[id(value)]
        if isinstance(value, Mapping):
            return {key: spelled(part) for key, part in value.items()}
        if isinstance(value, (list, tuple)):
            return [spelled(part) for part in value]
        return value

    def named(one: FileInput) -> str:
        entry: dict[str, Any] = {"path": one.name, "sha256": digest(one)}
        own = _nested(one.recipe)
        entry |= {} if own is None else {"recipe": own}
        name = next((n for n, known in inputs.items() if known == entry), "")
        if not name:
            name = _free(one.path.stem, inputs)
            inputs[name] = entry
        return name

    for node in nodes_of(made):
        if isinstance(node, FileInput):
            names[id(node)] = named(node)
        elif node is not made:
            names[id(node)] = f"step{len(steps) + 1}"
            steps[names[id(node)]] = {node.verb: spelled(node.content)}
    content = {k: v for k, v in made.content.items() if not written or k not in _WRITING}
    steps[RESULT] = {made.verb: spelled(content) | dict(written)}
    recipe = {"version": 1, "inputs": inputs, "steps": steps}
    return json.dumps(recipe, ensure_ascii=False, separators=(",", ":"))


_WRITING = ("to", "for", "dtype")


def _free(stem: str, taken: Mapping[str, Any]) -> str:
    """Return a name for an input: the file's, as far as names in recipes may look so."""
    clean = "".join(c if c.isalnum() or c in "-_." else "_" for c in stem) or "input"
    clean = clean.encode("utf-8", "replace").decode()
    reserved = clean == RESULT or clean.startswith("step") or clean in taken
    name, count = f"{clean}-2" if reserved else clean, 2
    while name in taken:
        count += 1
        name = f"{clean}-{count}"
    return name


def _nested(recipe: str | None) -> dict[str, Any] | None:
    """Return an input's own recipe, if it is valid and not too long to copy."""
    if recipe is None or len(recipe.encode("utf-8", "replace")) > _MOST:
        return None
    return recipe_in({RECIPE_KEY: recipe})


def recipe_in(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the recipe in a header, None without a valid one."""
    try:
        content: Any = values_in(metadata[RECIPE_KEY])
    except (KeyError, ValueError):
        return None
    whole = isinstance(content, dict) and isinstance(content.get("steps"), dict)
    if not whole or not isinstance(content.get("inputs"), dict):
        return None
    _count_clip_skip_from_one(content["steps"])
    found: dict[str, Any] = content
    return found


def _count_clip_skip_from_one(steps: Mapping[str, Any]) -> None:
    """Change steps of training whose CLIP skip is a number, which once counted layers from 0."""
    for step in steps.values():
        train = step.get("train") if isinstance(step, dict) else None
        if isinstance(train, dict) and type(train.get("clip_skip")) is int:
            train["clip_skip"] = str(train["clip_skip"] + 1)


def header_entries(
    made: Made | None,
    written: Mapping[str, Any],
    digest: Callable[[FileInput], str] = lambda one: one.digest(),
) -> dict[str, str]:
    """Return the header entries with the program that wrote a file and, if known, its recipe."""
    entries = {VERSION_KEY: __version__}
    if made is not None:
        entries[RECIPE_KEY] = recipe_text(made, written, digest)
    return entries


def placeholder(_: FileInput) -> str:
    """Return a placeholder with the length of a digest."""
    return PLACEHOLDER
