"""Variables: `${w}` in the text of a recipe, and the cases of a sweep.

A text that consists of one variable takes the variable's value with its type; inside a longer text the
value is written out. `${file.stem}` and `${file.name}` are parts of a path; `$${w}` is the text `${w}`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from loramerge.algebra.weights import shown_number
from loramerge.errors import LoramergeError, suggestion
from loramerge.library.patterns import expand
from loramerge.recipe.mistakes import Mistakes, Place

__all__ = [
    "Case",
    "as_text",
    "case_label",
    "cases_of",
    "escape",
    "project",
    "substitute",
    "variables_in",
    "variables_of",
]

_USE = re.compile(r"\$(\$?)\{([^{}]*)\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_PARTS = {"stem": lambda path: path.stem, "name": lambda path: path.name}
_MOST_CASES = 10_000

Case = Mapping[str, Any]


def variables_of(
    content: Any, place: Place, overrides: Mapping[str, Any], mistakes: Mistakes
) -> dict[str, Any]:
    """Return the variables of `vars`.

    Args:
        overrides: variable → given value, which replaces the recipe's.
    """
    found: dict[str, Any] = {}
    if not isinstance(content, Mapping):
        mistakes.add(place, "vars must be a mapping of names to values")
        content = {}
    for name, value in content.items():
        if _usable(name, (*place, name), mistakes):
            found[name] = overrides.get(name, value)
            if any(variables_in(value)):
                mistakes.add(
                    (*place, name, "="), f"the value of {name} cannot use another variable"
                )
    return found


def _usable(name: str, place: Place, mistakes: Mistakes) -> bool:
    if _NAME.fullmatch(name):
        return True
    hint = "a name starts with a letter or _, and has letters, digits, _ and -"
    mistakes.add(place, f"{name!r} is not a valid name of a variable", hint)
    return False


def cases_of(
    content: Any, place: Place, overrides: Mapping[str, Any], root: Path, mistakes: Mistakes
) -> list[dict[str, Any]]:
    """Return the cases of a `sweep`: all combinations of a mapping, or those of a list.

    Args:
        overrides: given values, which replace those of the recipe.
        root: folder that patterns of files start from.
    """
    if isinstance(content, Mapping):
        ranges = {}
        for name, values in content.items():
            if _usable(name, (*place, name), mistakes):
                values = overrides.get(name, values)
                values = values if isinstance(values, (list, Mapping)) else [values]
                ranges[name] = _values(values, (*place, name), root, mistakes)
        count = 1
        for values in ranges.values():
            count *= len(values)
        if count > _MOST_CASES:
            mistakes.add(place, f"the sweep has {count} cases, and {_MOST_CASES} is the limit")
            return []
        return [
            dict(zip(ranges, values, strict=True)) for values in itertools.product(*ranges.values())
        ]
    if isinstance(content, list) and content and all(isinstance(c, Mapping) for c in content):
        return _listed(content, place, overrides, mistakes)
    mistakes.add(
        place, "sweep must be a mapping of variables to lists of values, or a list of cases"
    )
    return []


def _listed(
    content: Sequence[Mapping[str, Any]], place: Place, overrides: Case, mistakes: Mistakes
) -> list[dict[str, Any]]:
    """Return the cases of a list; all must have the same variables."""
    names = list(dict.fromkeys(name for case in content for name in case))
    for index, case in enumerate(content):
        for name in names:
            if name not in case:
                mistakes.add((*place, index), f"this case has no value for {name}, and others have")
            else:
                _usable(name, (*place, index, name), mistakes)
    cases = [{n: overrides.get(n, case.get(n)) for n in names} for case in content]
    return [case for i, case in enumerate(cases) if case not in cases[:i]]


def _values(values: Any, place: Place, root: Path, mistakes: Mistakes) -> list[Any]:
    """Return the values of one variable of a sweep: a list, or the files of a pattern."""
    if isinstance(values, Mapping):
        if values.keys() != {"files"} or not isinstance(values.get("files"), str):
            mistakes.add(place, "a variable of a sweep takes a list of values, or {files: PATTERN}")
            return []
        try:
            found = [path for path, _ in expand([values["files"]], root)]
        except LoramergeError as error:
            mistakes.caught((*place, "files"), error)
            return []
        return [_relative(path, root) for path in found]
    if not values:
        mistakes.add(place, "this list has no values, so the sweep has no cases")
    return [value for i, value in enumerate(values) if value not in values[:i]]


def _relative(path: Path, root: Path) -> str:
    try:
        return path.relative_to(root).as_posix()
    except ValueError:
        return path.as_posix()


def variables_in(value: Any) -> Iterator[str]:
    """Yield the names of the variables in a value, nested lists and mappings included."""
    if isinstance(value, str):
        for escape, name in _USE.findall(value):
            if not escape:
                yield name.partition(".")[0].strip()
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from variables_in(key)
            yield from variables_in(part)
    elif isinstance(value, list):
        for part in value:
            yield from variables_in(part)


def substitute(value: Any, place: Place, variables: Case, mistakes: Mistakes) -> Any:
    """Return a value with the variables in it replaced by their values."""
    if isinstance(value, Mapping):
        return {
            _text(key, (*place, key), variables, mistakes): substitute(
                part, (*place, key), variables, mistakes
            )
            for key, part in value.items()
        }
    if isinstance(value, list):
        return [substitute(part, (*place, i), variables, mistakes) for i, part in enumerate(value)]
    if not isinstance(value, str):
        return value
    whole = _USE.fullmatch(value)
    if whole and not whole[1]:
        return _value(whole[2], place, variables, mistakes)
    return _text(value, place, variables, mistakes)


def escape(value: Any) -> Any:
    """Return a value in which `substitute` replaces nothing: `$${w}` for `${w}`."""
    if isinstance(value, Mapping):
        return {escape(key): escape(part) for key, part in value.items()}
    if isinstance(value, list):
        return [escape(part) for part in value]
    return _USE.sub(r"$\g<0>", value) if isinstance(value, str) else value


def _text(text: str, place: Place, variables: Case, mistakes: Mistakes) -> str:
    def one(match: re.Match[str]) -> str:
        if match[1]:
            return match[0][1:]
        return as_text(_value(match[2], place, variables, mistakes))

    return _USE.sub(one, text)


def _value(use: str, place: Place, variables: Case, mistakes: Mistakes) -> Any:
    name, dot, part = (word.strip() for word in use.partition("."))
    if name not in variables:
        mistakes.add((*place, "="), f"there is no variable {name!r}", suggestion(name, variables))
        return 1  # so that the rest can be checked
    value = variables[name]
    if not dot:
        return value
    if part not in _PARTS or not isinstance(value, str):
        mistakes.add((*place, "="), f"{name!r} has no part {part!r}", "paths have .stem and .name")
        return ""
    return _PARTS[part](PurePosixPath(value.replace("\\", "/")))


def as_text(value: Any) -> str:
    """Return a value as text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return shown_number(value)
    return str(value)


def project(case: Case, names: Sequence[str]) -> dict[str, Any]:
    """Return the values that a case has for some variables, in the order of the case."""
    return {name: value for name, value in case.items() if name in names}


def case_label(case: Case) -> str:
    """Return `[w=0.5,seed=1]`, or an empty text for an empty case."""
    parts = ",".join(f"{name}={as_text(value)}" for name, value in case.items())
    return f"[{parts}]" if parts else ""
