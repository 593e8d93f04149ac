"""Words and tables of commands that write checkpoints, or only show what they would write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loramerge.cli import show

__all__ = ["estimated", "show_changes", "written"]


def written(result: Any) -> list[tuple[str, str]]:
    """Return the lines that say where a result is, or of a dry run where it would be."""
    size = [("size", show.size(result.size))] if result.size else []
    return [("would write" if result.dry_run else "written", str(result.output)), *size]


def estimated(found: str | None, verb: str) -> list[tuple[str, str]]:
    """Return the line that says from how many tensors a forecast is; none where it is from all."""
    return [] if found is None else [("estimated", f"{found}; a {verb} measures all")]


def show_changes(touched: Sequence[Mapping[str, Any]]) -> None:
    """Show the first of the tensors that would change, as a dry run lists them."""
    rows = [
        (
            show.module(one["module"]),
            show.module(one["tensor"]),
            "×".join(map(str, one["shape"])),
            one["dtype"],
        )
        for one in touched
    ]
    show.first_rows(rows, ("module", "tensor", "shape", "type"))
