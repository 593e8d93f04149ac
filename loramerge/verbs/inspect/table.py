"""Many files as one table: a row for each adapter and checkpoint."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from loramerge.adapter import Problem
from loramerge.errors import sized
from loramerge.verbs.inspect.facts import Inspected, InspectResult

__all__ = ["COLUMNS", "CSV", "TableRow", "rows_of"]

_NOISE = re.compile(r"(high|low)([ _.-]?)noise", re.I)  # the two networks of Wan 2.2
_ORDER = ("error", "warning", "note")
_MOST_WORDS = 3


@dataclass(frozen=True)
class TableRow:
    """One adapter or checkpoint, in one file or in a pair of files.

    Args:
        pair: whether it is the two files of a model with two networks.
    """

    name: str
    files: tuple[Inspected, ...]
    pair: bool = False
    findings: list[Problem] = field(default_factory=list)

    @property
    def first(self) -> Inspected:
        """The file that stands for both of a pair."""
        return self.files[0]

    @property
    def size(self) -> int | None:
        """Bytes of all files."""
        sizes = [file.size for file in self.files if file.size is not None]
        return sum(sizes) if sizes else None

    @property
    def kind(self) -> str:
        """The kinds of modules, or what it is."""
        if self.first.error:
            return self.first.what
        return " + ".join(self.first.kinds) if self.first.kinds else self.first.what

    @property
    def ranks(self) -> str:
        """`8`, or `4 to 16`."""
        found = sorted({rank for file in self.files for rank in file.ranks})
        return (
            "" if not found else str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"
        )

    @property
    def problems(self) -> str:
        """`1 error, 2 warnings: not-finite, spike`; modules with the same problem count once."""
        if self.first.error:
            return f"cannot be read: {self.first.error}"
        codes: dict[str, list[str]] = {}
        for problem in self.findings:
            codes.setdefault(problem.severity, []).append(problem.code)
        counts = []
        for severity in _ORDER:
            number = len(dict.fromkeys(codes.get(severity, ())))
            if number:
                counts.append(f"{number} {severity}{'' if number == 1 else 's'}")
        named = dict.fromkeys(code for severity in _ORDER for code in codes.get(severity, ()))
        unknown = sum(len(file.unknown_keys) for file in self.files)
        if unknown:
            counts.append(f"{unknown} unknown {'tensor' if unknown == 1 else 'tensors'}")
        return ", ".join(counts) + (f": {', '.join(named)}" if named else "")

    @property
    def severity(self) -> int:
        """3 for errors, 2 for warnings, 1 for notes, 0 for none."""
        if self.first.error:
            return 3
        return max((3 - _ORDER.index(p.severity) for p in self.findings), default=0)


# column → its text in the terminal, and what it is sorted by
COLUMNS: dict[str, tuple[Callable[[TableRow], str], Callable[[TableRow], Any]]] = {
    "name": (lambda row: row.name, lambda row: row.name.lower()),
    "family": (lambda row: row.first.family or "", lambda row: row.first.family or "~"),
    "kind": (lambda row: row.kind, lambda row: row.kind),
    "rank": (lambda row: row.ranks, lambda row: -max(row.first.ranks, default=0)),
    "size": (
        lambda row: "" if row.size is None else sized(row.size),
        lambda row: -(row.size or 0),
    ),
    "trained-on": (
        lambda row: row.first.trained_on or "",
        lambda row: (row.first.trained_on or "~").lower(),
    ),
    "trigger-words": (
        lambda row: _several(row.first.trigger_words),
        lambda row: ([*row.first.trigger_words, "~"])[0].lower(),
    ),
    "weight": (
        lambda row: "" if row.first.usual_weight is None else f"{row.first.usual_weight:g}",
        lambda row: -(row.first.usual_weight or 0.0),
    ),
    "loads-in": (
        lambda row: _several(row.first.loads_in, 9),
        lambda row: -len(row.first.loads_in),
    ),
    "problems": (lambda row: row.problems, lambda row: (-row.severity, -len(row.findings))),
}


# column of the CSV file → its value
CSV: dict[str, Callable[[TableRow], Any]] = {
    "file": lambda row: " + ".join(file.path for file in row.files),
    "what": lambda row: row.first.what,
    "family": lambda row: row.first.family,
    "dialect": lambda row: row.first.dialect,
    "kind": lambda row: row.kind,
    "modules": lambda row: sum(file.modules for file in row.files),
    "rank": lambda row: row.ranks,
    "size": lambda row: row.size,
    "trained_on": lambda row: row.first.trained_on,
    "trigger_words": lambda row: ", ".join(row.first.trigger_words),
    "usual_weight": lambda row: row.first.usual_weight,
    "loads_in": lambda row: ", ".join(row.first.loads_in),
    "contains": lambda row: row.first.merged,
    "checked": lambda row: row.first.checked,
    "problems": lambda row: row.problems,
}


def _several(words: Sequence[str], most: int = _MOST_WORDS) -> str:
    more = len(words) - most
    return ", ".join(words[:most]) + (f", … {more} more" if more > 0 else "")


def _rows(files: Iterable[Inspected]) -> list[TableRow]:
    """Return a row for each file; the two of a pair of experts share one."""
    pairs: dict[str, list[Inspected]] = {}
    for file in files:
        pairs.setdefault(_without_noise(file), []).append(file)
    found = []
    for key, members in pairs.items():
        words = {_noise_in(file) for file in members}
        if len(members) == 2 and words == {"high", "low"}:
            members.sort(key=_noise_in)
            findings = [p for file in members for p in file.findings if p.code != "one-network"]
            found.append(
                TableRow(
                    f"{os.path.basename(key)} (high + low noise)", tuple(members), True, findings
                )
            )
        else:
            found += (
                TableRow(
                    os.path.basename(file.path.rstrip("/\\")) or file.path,
                    (file,),
                    False,
                    file.findings,
                )
                for file in members
            )
    order = {id(file): place for place, file in enumerate(f for m in pairs.values() for f in m)}
    return sorted(found, key=lambda row: order[id(row.first)])


def _noise_in(file: Inspected) -> str:
    match = _NOISE.search(os.path.basename(file.path))
    return "" if match is None else match[1].lower()


def _without_noise(file: Inspected) -> str:
    folder, name = os.path.split(file.path)
    if not _NOISE.search(name) or file.what != "adapter":
        return file.path
    stem = _NOISE.sub("\0", os.path.splitext(name)[0])
    return os.path.join(folder, re.sub(r"[ _.-]*\0[ _.-]*", " ", stem).strip() or "pair")


def rows_of(result: InspectResult) -> list[TableRow]:
    """Return the rows of the table, sorted as asked for; equal ones in the order they had."""
    rows = _rows(result.files)
    return rows if result.sort is None else sorted(rows, key=COLUMNS[result.sort][1])
