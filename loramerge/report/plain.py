"""A report of any result, from the object that `--json` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loramerge.report.document import Bars, Notes, Part, Report, Section, Table, facts, number

__all__ = ["plain_report"]

_UNSAID = ("outputs", "verdict")  # entries that stand elsewhere


def plain_report(title: str, content: Mapping[str, Any]) -> Report:
    """Return a report of the entries of an object: facts, tables, and bars of numbers by name."""
    entries = {name: value for name, value in content.items() if name not in _UNSAID}
    single = {_words(name): _said(v) for name, v in entries.items() if not _is_several(v)}
    sections = [
        Section(_words(name).capitalize(), [_part(_words(name), value)])
        for name, value in entries.items()
        if _is_several(value) and value
    ]
    verdict = content.get("verdict")
    lead = verdict if isinstance(verdict, str) else ""
    return Report(title, lead, [Section("Facts", [facts(single)]), *sections])


def _is_several(value: Any) -> bool:
    return isinstance(value, (Mapping, list, tuple))


def _part(name: str, value: Any) -> Part:
    if not isinstance(value, Mapping):
        if all(isinstance(one, Mapping) for one in value):
            return _table(name, [("", one) for one in value])
        return Notes(tuple(("", _said(one)) for one in value))
    if all(isinstance(one, Mapping) for one in value.values()):
        return _table(name, list(value.items()))
    if all(_is_number(one) for one in value.values()):
        rows = [(str(key), (one,)) for key, one in value.items()]
        return Bars(name.capitalize(), "", series=(name,), rows=rows)
    return facts({str(key): _said(one) for key, one in value.items()})


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _table(name: str, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> Table:
    columns = list(dict.fromkeys(key for _, row in rows for key in row))
    named = any(key for key, _ in rows)
    cells = [
        (*([str(key)] if named else []), *(_said(row.get(one)) for one in columns))
        for key, row in rows
    ]
    head = [*([""] if named else []), *map(_words, columns)]
    return Table(name, head, cells)


def _words(name: str) -> str:
    return str(name).replace("_", " ")


def _said(value: Any) -> str:
    """Return a value as text; nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value, 4)
    if isinstance(value, Mapping):
        return ", ".join(f"{_words(key)}: {_said(one)}" for key, one in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_said, value))
    return str(value)
