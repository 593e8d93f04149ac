"""An adapter as people see it: one line, or a small table in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import PurePath

from loramerge.adapter.adapter import Adapter
from loramerge.errors import sized

__all__ = ["html", "summary", "table"]

_MOST = 12  # modules that a table lists


def summary(adapter: Adapter) -> str:
    """Return one line: name, dialect, family, number of modules, kinds and ranks."""
    info = adapter.info
    name = repr(PurePath(info.path).name) if info.path else "computed"
    known = [name, info.dialect, info.detection.name, _modules(len(adapter)), _kinds(adapter)]
    return f"Adapter({', '.join(part for part in known if part)})"


def html(adapter: Adapter) -> str:
    """Return a table of what is known, and the first modules; all text is escaped."""
    info = adapter.info
    facts = {
        "file": info.path or "computed",
        "size": sized(info.size) if info.size is not None else "",
        "dialect": info.dialect or "",
        "family": info.detection.name or "unknown",
        "modules": _counted(adapter.components()),
        "kinds": _kinds(adapter),
        "alphas": _counted(adapter.alphas()),
        "embeddings": ", ".join(adapter.embeddings),
        "problems": str(len(info.problems) or ""),
        "unknown tensors": str(len(info.account.unknown) or ""),
    }
    rows = [
        (name, delta.kind, " × ".join(map(str, delta.shape)), str(delta.rank or ""))
        for name, delta in adapter.modules()
    ]
    more = f"<p>… and {_modules(len(rows) - _MOST)} more</p>" if len(rows) > _MOST else ""
    listed = table([("module", "kind", "shape", "rank"), *rows[:_MOST]])
    return table((k, v) for k, v in facts.items() if v) + listed + more


def table(rows: Iterable[Iterable[str]]) -> str:
    """Return rows of cells as an HTML table; all text is escaped."""
    cells = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def _modules(count: int) -> str:
    return f"{count} module{'' if count == 1 else 's'}"


def _counted(counts: Mapping[object, int] | Mapping[str, int] | Mapping[float, int]) -> str:
    return ", ".join(f"{value} ({count})" for value, count in counts.items())


def _kinds(adapter: Adapter) -> str:
    ranks = list(adapter.ranks())
    kinds = ", ".join(adapter.kinds())
    if not ranks:
        return kinds
    spread = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]}–{ranks[-1]}"
    return f"{kinds} of rank {spread}"
