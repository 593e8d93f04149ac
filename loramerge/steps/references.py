"""References to adapters or checkpoints with a weight: `A:0.8`, `A:unet=0.8:te=0`, `A:depth=0,1`,
`lora:A:0.8`, `<lora:A:0.8:lbw=OUTALL>`.

Other programs write weights differently (`A=0.7`, `A:0.7,B:0.3`). loramerge does not guess the
meaning of such texts: the error shows them in its own form, if the names in them are found.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from loramerge.algebra.blocks import PRESETS
from loramerge.algebra.weights import Weight, shown_number, weight_of
from loramerge.errors import CorruptFile, MissingFile, NotFound, Setting, UsageError
from loramerge.families.components import COMPONENT_WORDS
from loramerge.files.yaml_values import yaml_values
from loramerge.library.hub import hub_reference
from loramerge.library.lookup import find
from loramerge.library.paths import below
from loramerge.library.registry import NameRegistry
from loramerge.steps.foreign import rewritten
from loramerge.steps.weight_words import (
    BLOCKS,
    BY_PATTERN,
    DEPTH,
    component_in,
    depth_in,
    number_in,
    refuse_decimal_comma,
    vector_in,
    weight_in_words,
    weight_words,
)

__all__ = [
    "Reference",
    "parse_reference",
    "place_of",
    "read_yaml",
    "references",
    "with_weight_files",
]

_ADAPTER = "lora:"
_SUFFIXES = (".safetensors", ".pt", ".bin", ".gguf")
_PROMPT = re.compile(r"<(?:lora|lyco):(.+)>\s*", re.DOTALL)
_ASSIGNED = re.compile(r"([A-Za-z_0-9]+)=(.*)", re.DOTALL)
_TIMED = ("start", "stop", "step")  # of the same program


@dataclass(frozen=True)
class Reference:
    """A name and the weight written behind it.

    Args:
        written: the weight in the user's words, for output names and tables.
        adapter: whether it says that it names an adapter, where a checkpoint could stand as well.
        stated: whether a weight is written, and not 1 because there is none.
        file: name of the weight file that gave the weight, if one did.
    """

    name: str
    weight: Weight = Weight()
    written: str = "1"
    adapter: bool = False
    stated: bool = field(default=False, compare=False)
    file: str = field(default="", compare=False)

    @property
    def weight_in_words(self) -> str:
        """The weight as it was written, with that of the rest, or the name of its file."""
        return self.file or weight_in_words(self.weight, self.written)

    def __str__(self) -> str:
        """Return the text of the reference."""
        name = f"{_ADAPTER}{self.name}" if self.adapter else self.name
        return name if self.written == "1" else f"{name}:{self.written}"

    def text(self) -> str:
        """Return the text that is read as this reference, with all numbers of its weight.

        A weight that only a file can state has its name there.
        """
        words = weight_words(self.weight) or ["1"] * self.stated
        found = ":".join([str(replace(self, written="1")), *words])
        with suppress(UsageError):
            if parse_reference(found).weight == self.weight:
                return found
        return str(self)

    def holds(self, completes: str) -> str:
        """Return what the name stands for, see `parameters.Doc.completes`."""
        return "adapters" if self.adapter and completes == "models" else completes

    def path(self, registry: NameRegistry | None = None, root: Path | None = None) -> Path:
        """Return the adapter's path; see `lookup.find`."""
        try:
            return find(self.name, "adapters", registry, root)
        except NotFound:
            if number_in(self.name) is not None:
                raise UsageError(
                    f"{self.name!r} is a weight without an adapter", hint=f"write NAME:{self.name}"
                ) from None
            meant = rewritten(str(self))
            if meant and all(_is_found(name, registry, root) for name, _ in meant):
                raise _not_a_reference(str(self)) from None
            head, _, tail = self.name.rpartition(":")
            if not _is_found(head, registry, root):
                raise
            raise UsageError(
                f"{self.name!r}: {tail!r} is not a weight",
                hint=BY_PATTERN if _is_pattern(tail) else f"{head}:0.8 or {head}:unet=0.8:te=0",
            ) from None

    @property
    def label(self) -> str:
        """The name without folders and suffix, for default output names and tables."""
        remote = hub_reference(self.name) if self.name.startswith("hf:") else None
        path = Path(self.name.replace("\\", "/") if remote is None else remote.name)
        if path.suffix in _SUFFIXES:
            return path.stem
        file, _, adapter = path.name.rpartition("#")  # one of several adapters in a file
        return f"{Path(file).stem}-{adapter}" if Path(file).suffix in _SUFFIXES else path.name


def _not_a_reference(text: str) -> UsageError:
    """Return the error for adapters in the notation of another program."""
    meant = " ".join(f"{name}:{weight}" for name, weight in rewritten(text))
    return UsageError(f"{text!r} is not an adapter with its weight", hint=f"write {meant}")


def _is_found(name: str, registry: NameRegistry | None, root: Path | None) -> bool:
    try:
        return bool(find(name, "adapters", registry, root))
    except (NotFound, UsageError):
        return False


def parse_reference(text: str, root: Path | None = None) -> Reference:
    """Split a reference into name and weight.

    Only last parts that parse as a weight are one, so `C:/x` and `a:b` stay names; a text that is
    an existing path (relative ones from `root`) is a name as a whole.

    Raises:
        UsageError: for two bare numbers, whose meaning differs between programs, a number beside a
            block vector, or an empty name.
    """
    prompt = _PROMPT.fullmatch(text.strip())
    rest = prompt.group(1) if prompt else text
    adapter = False
    if not prompt and _says_adapter(text, root):
        rest, adapter = text.removeprefix(_ADAPTER), True
    if not prompt and rest.strip() and os.path.exists(below(root, rest)):
        return Reference(rest, adapter=adapter)
    default: list[float] = []
    components: dict[str, float] = {}
    written: list[str] = []
    blocks: tuple[float, ...] = ()
    depth: tuple[float, ...] = ()
    while True:
        head, colon, tail = rest.rpartition(":")
        if not colon:
            break
        number = number_in(tail)
        assigned = _ASSIGNED.fullmatch(tail)
        if number is not None:
            default.append(number)
        elif assigned and assigned.group(1) in _TIMED:
            raise UsageError(
                f"{text!r}: {assigned.group(1)!r} limits an adapter to some of the sampling "
                "steps, which a file cannot store",
                hint="leave it out",
            )
        elif assigned and assigned.group(1) == DEPTH and not depth:
            depth = depth_in(assigned.group(2), text)
            written.insert(0, f"{len(depth)} depths")
        elif assigned and assigned.group(1) != BLOCKS:
            found = component_in(assigned.group(1), assigned.group(2), text)
            if twice := found.keys() & components.keys():
                raise UsageError(f"{text!r} gives {sorted(twice)[0]} two weights")
            components = found | components
            written.insert(0, f"{assigned.group(1)}={shown_number(next(iter(found.values())))}")
        elif (found_blocks := vector_in(tail, text)) and not blocks:
            refuse_decimal_comma(tail, head)
            blocks, vector = found_blocks, tail.removeprefix(f"{BLOCKS}=")
            written.insert(0, vector if vector in PRESETS else f"{len(blocks)} blocks")
        else:
            break
        rest = head
    default = default[:1] if len(set(default)) == 1 else default
    if (blocks or depth) and default == [1.0]:
        default = []  # programs multiply: once the vector is the vector
    if (len(default) > 1 or (default and (blocks or depth))) and len(rewritten(text)) > 1:
        raise _not_a_reference(text)
    if default and (blocks or depth):
        products = ",".join(f"{default[0] * value:g}" for value in blocks or depth)
        raise UsageError(
            f"{text!r} gives both a number and weights per block; loramerge does not multiply them",
            hint=f"write the products into the vector: {rest}:{'' if blocks else 'depth='}{products}"
            if len(default) == 1
            else "write the products into the vector",
        )
    if len(default) > 1:
        first, second = default[1], default[0]
        raise UsageError(
            f"{text!r} gives two weights, and programs disagree on which is the text encoder's",
            hint=f"write {rest}:unet={first:g}:te={second:g} (as ComfyUI reads it) "
            f"or {rest}:te={first:g}:unet={second:g} (as A1111 reads it)",
        )
    if not rest.strip():
        raise UsageError(f"{text!r} has no name of an adapter", hint="write NAME:0.8")
    if not all(math.isfinite(number) for number in (*default, *components.values())):
        raise UsageError(f"{text!r}: a weight must be a finite number")
    stated = bool(default or written)
    if default or not written:
        written.insert(0, shown_number(default[0]) if default else "1")
    weight = Weight(default[0] if default else 1.0, components, blocks, depth)
    return Reference(rest, weight, ":".join(written), adapter, stated)


def _is_pattern(part: str) -> bool:
    """Return whether a part of a weight looks like a pattern with its value: `*attn2*=0.5`."""
    pattern, equals, value = part.rpartition("=")
    return bool(equals) and any(sign in pattern for sign in "*?[") and number_in(value) is not None


def _says_adapter(text: str, root: Path | None) -> bool:
    """Return whether a text begins with `lora:`, rather than naming a thing that is called so."""
    if not text.startswith(_ADAPTER) or os.path.exists(below(root, text)):
        return False
    part = text.removeprefix(_ADAPTER).partition(":")[0]
    assigned = _ASSIGNED.fullmatch(part)
    known = (DEPTH, *COMPONENT_WORDS)
    weight = number_in(part) is not None or (assigned and assigned.group(1) in known)
    return not weight and not vector_in(part, text)


def references(*texts: str) -> tuple[Reference, ...]:
    """Parse several references; see `parse_reference`."""
    return tuple(parse_reference(text) for text in texts)


def place_of(name: str, references: Sequence[Reference]) -> int:
    """Return the place of the reference with a name, without its folder or as it was given.

    `#2` is the second, whatever its name.

    Raises:
        UsageError: if none or several have the name.
    """
    number = name.removeprefix("#")
    if number != name and number.isdecimal() and 1 <= int(number) <= len(references):
        return int(number) - 1
    places = [i for i, r in enumerate(references) if name in (r.name, r.label)]
    if len(places) != 1:
        problem = f"{name!r} is not an adapter or checkpoint of this command"
        raise UsageError(
            problem if not places else f"{name!r} names several inputs",
            expected=", ".join(r.label for r in references),
            hint="give its number, such as #2" if places else None,
        )
    return places[0]


def with_weight_files(
    references: Sequence[Reference], assignments: Sequence[str]
) -> list[Reference]:
    """Give references the weights that `NAME=FILE.yaml` assignments state for them.

    Raises:
        UsageError: if an assignment names no reference, or one that has a weight already.
        MissingFile, CorruptFile: if a file cannot be read.
    """
    result = list(references)
    for assignment in assignments:
        name, equals, path = assignment.rpartition("=")
        if not equals:
            raise UsageError(
                f"{assignment!r} is not NAME=FILE",
                hint="write a number behind the adapter: NAME:0.7"
                if number_in(assignment.split(",")[0]) is not None
                else (Setting("weights", "NAME=FILE.yaml"),),
            )
        place = place_of(name, result)
        old = result[place]
        if old.weight != Weight():
            raise UsageError(f"{name!r} has a weight already: {old.written}")
        weight = weight_of(read_yaml(Path(path)), Path(path).name)
        stem, file = Path(path).stem, Path(path).name
        result[place] = replace(old, weight=weight, written=stem, stated=True, file=file)
    return result


def read_yaml(path: Path) -> object:
    """Read a small YAML 1.2 file.

    Raises:
        MissingFile, CorruptFile: if it cannot be read.
    """
    try:
        return yaml_values(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise MissingFile("no such file", file=path) from None
    except (ValueError, OSError) as error:
        raise CorruptFile(f"cannot be read as YAML ({error})", file=path) from None
