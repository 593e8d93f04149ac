"""The views of an adapter for people: one line, or a small table in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePath

from loramerge.adapter.delta import Delta
from loramerge.adapter.info import Info
from loramerge.errors import sized
from loramerge.records import record

__all__ = ["Overview", "table"]

_MOST = 12  # modules that a table lists


@record
class Overview:
    """The content of an adapter, counted.

    Args:
        modules: name → delta.
        kinds, components, ranks, alphas: value → number of modules that have it.
        embeddings: their names.
    """

    info: Info
    modules: Mapping[str, Delta]
    kinds: Mapping[str, int]
    components: Mapping[str, int]
    ranks: Mapping[int, int]
    alphas: Mapping[float, int]
    embeddings: Iterable[str]

    def line(self) -> str:
        """Return one line: name, dialect, family, number of modules, kinds and ranks."""
        info = self.info
        name = repr(PurePath(info.path).name) if info.path else "computed"
        count = _modules(len(self.modules))
        known = [name, info.dialect, info.detection.name, count, self._kinds()]
        return f"Adapter({', '.join(part for part in known if part)})"

    def html(self) -> str:
        """Return a table of the known facts and the first modules; all text is escaped."""
        info = self.info
        facts = {
            "file": info.path or "computed",
            "size": sized(info.size) if info.size is not None else "",
            "dialect": info.dialect or "",
            "family": info.detection.name or "unknown",
            "modules": _counted(self.components),
            "kinds": self._kinds(),
            "alphas": _counted(self.alphas),
            "embeddings": ", ".join(self.embeddings),
            "problems": str(len(info.problems) or ""),
            "unknown tensors": str(len(info.account.unknown) or ""),
        }
        rows = [
            (name, delta.kind, " × ".join(map(str, delta.shape)), str(delta.rank or ""))
            for name, delta in self.modules.items()
        ]
        more = f"<p>… and {_modules(len(rows) - _MOST)} more</p>" if len(rows) > _MOST else ""
        listed = table([("module", "kind", "shape", "rank"), *rows[:_MOST]])
        return table((k, v) for k, v in facts.items() if v) + listed + more

    def _kinds(self) -> str:
        ranks, kinds = list(self.ranks), ", ".join(self.kinds)
        if not ranks:
            return kinds
        spread = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]}–{ranks[-1]}"
        return f"{kinds} of rank {spread}"


def table(rows: Iterable[Iterable[str]]) -> str:
    """Return rows of cells as an HTML table; all text is escaped."""
    from html import escape

    cells = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def _modules(count: int) -> str:
    return f"{count} module{'' if count == 1 else 's'}"


def _counted(counts: Mapping[str, int] | Mapping[float, int]) -> str:
    return ", ".join(f"{value} ({count})" for value, count in counts.items())
