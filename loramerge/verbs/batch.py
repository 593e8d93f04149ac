"""What verbs on several files share: which files, and the table of results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any

from loramerge.errors import OutputExists

__all__ = ["check_table", "without_outputs", "write_table"]


def without_outputs(
    files: list[tuple[Path, PurePath]], out_dir: str | None
) -> list[tuple[Path, PurePath]]:
    """Leave out what an earlier run wrote, where results lie inside a folder that was given.

    Args:
        files: (path, path relative to what was given) pairs, as from `lookup.expand`.
    """
    if out_dir is None:
        return files
    results = Path(out_dir).resolve()
    kept = []
    for path, relative in files:
        place = path.resolve()
        root = place.parents[len(relative.parts) - 1]
        inside = results != root and root in results.parents
        if not (inside and results in place.parents):
            kept.append((path, relative))
    return kept


def check_table(path: Path) -> None:
    """Refuse to write the table of results over something else.

    Raises:
        OutputExists: if the path is a folder, or a file that is no such table.
    """
    if not path.exists():
        return
    if path.is_dir() or path.read_bytes()[:5] not in (b"file,", b""):
        raise OutputExists(
            "--results would replace something that is no table of results",
            file=path,
            hint="give --results another name",
        )


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write results as CSV, the first column being `file`; an older table is replaced."""
    import csv
    import io

    from loramerge.files.writer import write_bytes

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode("utf-8", "replace"), force=True)
