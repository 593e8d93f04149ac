"""The command `library`: find adapters by name, words and resemblance; keep tags and notes."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loramerge.cli import show
from loramerge.cli.command import emit
from loramerge.cli.indexed import COMMANDS
from loramerge.cli.options import json_options, run_options
from loramerge.cli.session import Session
from loramerge.errors import NotFound, UsageError
from loramerge.library.lookup import names_in_library
from loramerge.library.registry import HOLDS, changed_registry, expanded, load_registry
from loramerge.library.shipped import SHIPPED_ADAPTERS

if TYPE_CHECKING:
    from loramerge.library.scanning import ScanResult

_EXAMPLE = "Example: loramerge library add ~/loras"


@click.group("library", epilog=_EXAMPLE)
def command() -> None:
    """Name the folders in which adapters are found.

    Then `loramerge mix style:0.7` finds style.safetensors in them. Index them to search, to find copies,
    and to keep tags, notes and ratings.
    """


@command.command("add", epilog=f"{_EXAMPLE}; loramerge library add --comfyui ~/ComfyUI")
@click.argument("folders", metavar="[FOLDER]...", nargs=-1)
@click.option(
    "--comfyui",
    metavar="DIR",
    help="Add the model folders of this ComfyUI, also those in extra_model_paths.yaml.",
)
@click.option("--a1111", metavar="DIR", help="Add the model folders of this A1111 or Forge.")
@click.option(
    "--holds",
    type=click.Choice(HOLDS),
    default="both",
    help="Content of FOLDER: adapters, bases, or both [default: both].",
)
def add(folders: tuple[str, ...], comfyui: str | None, a1111: str | None, holds: str) -> None:
    """Add folders to the library."""
    from loramerge.library.programs import program_folders

    if not folders and not comfyui and not a1111:
        raise UsageError("a folder is missing", hint="loramerge library add FOLDER")
    wanted = [(expanded(folder), holds) for folder in folders]
    for program, root in (("comfyui", comfyui), ("a1111", a1111)):
        if root:
            found = program_folders(program, expanded(root))
            wanted += [(Path(f.path), f.holds) for f in found]
    lines = []
    with changed_registry() as registry:
        for path, what in wanted:
            new = registry.add_folder(path, what)
            lines.append(f"{'added' if new else 'already in the library'}: {path.resolve()}")
    for line in lines:
        show.line(line)
    show.line("Names in it are found now. To search in it as well: loramerge library scan")


@command.command(
    "scan", params=run_options(device=False), epilog="Example: loramerge library scan ~/loras"
)
@click.argument("folders", metavar="[FOLDER]...", nargs=-1)
@click.option("--fresh", is_flag=True, help="Read all files again, also unchanged ones.")
def scan_folders(
    folders: tuple[str, ...],
    fresh: bool,
    as_json: bool,
    json_file: str | None,
    quiet: bool,
    threads: int | None,
) -> None:
    """Index the adapters in folders.

    Without a FOLDER those of the library are indexed. Only new and changed files are read. Files
    that were moved keep their tags and notes; those that are gone are remembered as missing.
    Nothing is written beside the files.
    """
    from loramerge.library import functions

    with Session(quiet=quiet) as session:
        found = functions.scan(*folders, fresh=fresh, threads=threads, notify=session.notify)
    emit(found.json(), as_json, json_file, lambda: None if quiet else _render_scan(found))


_MOST = 20  # files that are listed
_HOLDS = {"both": "adapters and bases"}


def _render_scan(found: ScanResult) -> None:
    counts = [(name, len(getattr(found, name))) for name in ("new", "changed", "moved", "missing")]
    said = ", ".join(f"{count} {name}" for name, count in counts if count)
    show.line(f"{show.count(found.files, 'file')}: {said or 'nothing has changed'}.")
    for title, paths in (("missing", found.missing), ("moved", found.moved)):
        for path in paths[:_MOST]:
            show.line(f"{title}: {path}")
        if len(paths) > _MOST:
            show.line(f"… and {len(paths) - _MOST} more {title}")
    problems = [f"cannot be read: {p}: {why}" for p, why in sorted(found.unreadable.items())]
    for path, those in sorted(found.sidecar_problems.items()):
        problems += [f"not read, beside {path}: {problem}" for problem in those]
    for reason, count in Counter(found.not_compared.values()).most_common():
        show.line(f"{show.count(count, 'file')} left out of `similar` and `duplicates`: {reason}")
    for line in problems[:_MOST]:
        show.line(line)
    if len(problems) > _MOST:
        show.line(f"… and {len(problems) - _MOST} more files that cannot be read")


@command.command("list", params=json_options(), epilog="Example: loramerge library list")
def list_folders(as_json: bool, json_file: str | None) -> None:
    """List the folders of the library.

    The counts are of files that it holds, of those that are indexed, and of indexed ones that are
    gone. `loramerge library search` without words lists the files.
    """
    registry = load_registry()
    indexed, missing = _indexed()
    content: list[dict[str, Any]] = []
    for folder in registry.folders:
        alone = type(registry)(folders=[folder])
        holds = "bases" if folder.holds == "bases" else "adapters"
        count = sum(1 for _ in names_in_library(alone, holds))
        entry = {"path": folder.path, "holds": folder.holds, "files": count}
        content.append(entry | _of(folder.path, indexed, missing))
    scanned = sorted({*indexed, *missing} - {folder.path for folder in registry.folders})
    content += [
        {"path": path, "holds": None, "files": None} | _of(path, indexed, missing)
        for path in scanned
    ]

    def render() -> None:
        if not content:
            show.line("The library is empty. Add a folder: loramerge library add FOLDER")
            show.line(f"Adapters that come with loramerge: {', '.join(SHIPPED_ADAPTERS)}")
        rows = [[*entry.values()] for entry in content]
        for row in rows:
            row[1] = _HOLDS.get(row[1], row[1]) or "only indexed"
        show.table(rows, ("folder", "holds", "files", "indexed", "missing"))

    emit(content, as_json, json_file, render)


def _of(path: str, indexed: dict[str, int], missing: dict[str, int]) -> dict[str, int]:
    return {"indexed": indexed.get(path, 0), "missing": missing.get(path, 0)}


def _indexed() -> tuple[dict[str, int], dict[str, int]]:
    """Return how many files of each scanned folder are indexed, and how many of them are missing."""
    from loramerge.library.index import has_index, open_index

    if not has_index():
        return {}, {}
    with open_index(create=False) as index:
        rows = index.rows("SELECT root, count(*), sum(missing) FROM places GROUP BY root")
    return {root: n for root, n, _ in rows}, {root: gone for root, _, gone in rows}


@command.command("remove", epilog="Example: loramerge library remove ~/loras")
@click.argument("folder", metavar="FOLDER")
def remove(folder: str) -> None:
    """Take a folder off the library and its index.

    Its files stay, and so do your tags and notes on them.
    """
    from loramerge.library.index import has_index, open_index

    place = expanded(folder)
    forgotten = 0
    if has_index():
        with open_index(create=False) as index, index.writing():
            forgotten = index.forget(str(place.resolve()))
    with suppress(NotFound) if forgotten else nullcontext(), changed_registry() as registry:
        registry.remove_folder(place)
    show.line("Removed the folder from the library; its files stay.")


for one in COMMANDS:
    command.add_command(one)
