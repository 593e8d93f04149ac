"""What users write for an adapter and its weight: `A:0.8`, `A:unet=0.8:te=0`, `<lora:A:0.8>`."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

from loramerge.algebra.weights import COMPONENT_WORDS, Weight
from loramerge.errors import NotFound, UsageError, nearest
from loramerge.library.lookup import find
from loramerge.library.registry import Registry

__all__ = ["Reference", "parse_reference"]

_PROMPT = re.compile(r"<(?:lora|lyco):(.+)>\s*", re.DOTALL)
_ASSIGNED = re.compile(r"([A-Za-z_0-9]+)=(.*)", re.DOTALL)
_VECTOR = re.compile(r"[-+0-9.eE]+(,[-+0-9.eE]+)+")
_NUMBER = re.compile(r"[-+]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?|nan|inf)", re.IGNORECASE)


@dataclass(frozen=True)
class Reference:
    """A name and the weight written behind it.

    Args:
        written: the weight in the user's words, for output names and tables.
    """

    name: str
    weight: Weight = Weight()
    written: str = "1"

    def path(self, registry: Registry | None = None) -> Path:
        """Return the adapter's path; see `lookup.find`."""
        try:
            return find(self.name, "adapters", registry)
        except NotFound:
            head, _, tail = self.name.rpartition(":")
            if not _is_found(head, registry):
                raise
            raise UsageError(
                f"{self.name!r}: {tail!r} is no weight", hint=f"{head}:0.8 or {head}:unet=0.8:te=0"
            ) from None

    @property
    def label(self) -> str:
        """The name without folders and suffix, for default output names and tables."""
        path = Path(self.name.replace("\\", "/"))
        return path.stem if path.suffix in (".safetensors", ".pt", ".bin") else path.name


def _is_found(name: str, registry: Registry | None) -> bool:
    try:
        return bool(find(name, "adapters", registry))
    except (NotFound, UsageError):
        return False


def _number(text: str) -> float | None:
    return float(text) if _NUMBER.fullmatch(text.strip()) else None


def _shown(number: float) -> str:
    """Return a number in the fewest digits that say it exactly."""
    short = f"{number:g}"
    return short if float(short) == number else repr(number)


def parse_reference(text: str) -> Reference:
    """Split a reference into name and weight.

    Only last parts that parse as a weight are one, so `C:/x` and `a:b` stay names; a text that is
    an existing path is a name as a whole.

    Raises:
        UsageError: for two bare numbers, whose meaning differs between programs, a block vector,
            or an empty name.
    """
    prompt = _PROMPT.fullmatch(text.strip())
    rest = prompt.group(1) if prompt else text
    if not prompt and rest.strip() and os.path.exists(rest):
        return Reference(rest)
    default: list[float] = []
    components: dict[str, float] = {}
    written: list[str] = []
    while True:
        head, colon, tail = rest.rpartition(":")
        if not colon:
            break
        number = _number(tail)
        assigned = _ASSIGNED.fullmatch(tail)
        if number is not None:
            default.append(number)
        elif assigned:
            found = _component(assigned.group(1), assigned.group(2), text)
            if twice := found.keys() & components.keys():
                raise UsageError(f"{text!r} gives {sorted(twice)[0]} two weights")
            components = found | components
            written.insert(0, f"{assigned.group(1)}={_shown(next(iter(found.values())))}")
        elif _VECTOR.fullmatch(tail):
            raise UsageError(
                f"{text!r} gives a weight per block, which this version does not have yet",
                hint="give one weight, or one per component: A:unet=0.8:te=0",
            )
        else:
            break
        rest = head
    if len(default) > 1:
        first, second = default[1], default[0]
        raise UsageError(
            f"{text!r} gives two weights, and programs disagree on which is the text encoder's",
            hint=f"write {rest}:unet={first:g}:te={second:g} (as ComfyUI reads it) "
            f"or {rest}:te={first:g}:unet={second:g} (as A1111 reads it)",
        )
    if not rest.strip():
        raise UsageError(f"{text!r} names no adapter", hint="write NAME:0.8")
    if not all(math.isfinite(number) for number in (*default, *components.values())):
        raise UsageError(f"{text!r}: a weight must be a finite number")
    if default or not written:
        written.insert(0, _shown(default[0]) if default else "1")
    return Reference(rest, Weight(default[0] if default else 1.0, components), ":".join(written))


def _component(word: str, value: str, text: str) -> dict[str, float]:
    """Return component weights for one `word=value`."""
    number = _number(value)
    if word not in COMPONENT_WORDS:
        close = nearest(word, COMPONENT_WORDS)
        raise UsageError(
            f"{text!r}: {word!r} is no component",
            expected=", ".join(COMPONENT_WORDS),
            hint=f"did you mean {close}?" if close else None,
        )
    if number is None:
        raise UsageError(f"{text!r}: {value!r} is no number")
    return dict.fromkeys(COMPONENT_WORDS[word], number)
