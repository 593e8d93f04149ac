"""Values of a parameter per module as the command line has them: `0.3:te=0.5:*attn*=0.2`, or a file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loramerge.algebra.blocks import PRESETS
from loramerge.errors import UsageError, suggestion
from loramerge.families.components import COMPONENT_WORDS
from loramerge.steps.references import read_yaml

__all__ = ["is_rules", "rules_in_text"]

_WHOLE = re.compile(r"[-+]?[0-9]+")
_SUFFIXES = (".yaml", ".yml")


def is_rules(text: str) -> bool:
    """Return whether a value is not one for all modules, but several, or a file of them."""
    return any(sign in text for sign in ":=,") or text in PRESETS or text.endswith(_SUFFIXES)


def rules_in_text(text: str, word: str) -> dict[str, Any]:
    """Return the mapping of values per module that a text states, see `per_module.values_of`.

    Parts are separated by colons: a value for all other modules, a block vector or its name, `depth=`
    with numbers, `te=0.5` for a component, `*attn*=0.2` for a pattern on names of modules.

    Args:
        word: the parameter, for errors.

    Raises:
        UsageError: naming the part that cannot be understood.
        MissingFile, CorruptFile: if a file cannot be read.
    """
    if text.endswith(_SUFFIXES):
        found = read_yaml(Path(text))
        if not isinstance(found, Mapping):
            raise UsageError(f"{word}: {text} must hold a mapping", found=found)
        return {str(key): value for key, value in found.items()}
    rules: dict[str, Any] = {}
    for part in text.split(":"):
        name, equals, value = part.rpartition("=")
        if not equals:
            kind = "preset" if part in PRESETS else "blocks" if "," in part else "default"
            read = _values(part) if kind == "blocks" else part if kind == "preset" else _plain(part)
            _add(rules, kind, read, text, word)
        elif name == "depth":
            _add(rules, "depth", _values(value), text, word)
        elif any(sign in name for sign in "*?[."):
            _add(rules.setdefault("match", {}), name, _plain(value), text, word)
        elif name in COMPONENT_WORDS:
            _add(rules, name, _plain(value), text, word)
        else:
            raise UsageError(
                f"{word} {text!r}: {name!r} is not a component",
                expected=f"{', '.join(COMPONENT_WORDS)}, or a pattern such as *attn*",
                hint=suggestion(name, COMPONENT_WORDS) or f"as a pattern: *{name}*={value}",
            )
    return rules


def _add(rules: dict[str, Any], name: str, value: Any, text: str, word: str) -> None:
    if name in rules:
        raise UsageError(f"{word} {text!r} gives two values for {name}")
    rules[name] = value


def _values(text: str) -> list[Any]:
    return [_plain(part) for part in text.split(",")]


def _plain(text: str) -> Any:
    """Return a number, or a word."""
    if _WHOLE.fullmatch(text):
        return int(text)
    try:
        return float(text)
    except ValueError:
        return text
