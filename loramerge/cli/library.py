"""The command `library`: name the folders in which adapters are found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from loramerge.cli import show
from loramerge.cli.command import emit
from loramerge.cli.options import json_options
from loramerge.errors import UsageError
from loramerge.library.lookup import names_in_library
from loramerge.library.registry import HOLDS, changed_registry, expanded, load_registry

_EXAMPLE = "Example: loramerge library add ~/loras"


@click.group("library", epilog=_EXAMPLE)
def command() -> None:
    """Name the folders in which adapters are found: `loramerge mix style:0.7` then finds
    style.safetensors."""


@command.command("add", epilog=f"{_EXAMPLE}; loramerge library add --comfyui ~/ComfyUI")
@click.argument("folders", metavar="[FOLDER]...", nargs=-1)
@click.option(
    "--comfyui",
    metavar="DIR",
    help="Add the model folders of this ComfyUI, also those in extra_model_paths.yaml.",
)
@click.option("--a1111", metavar="DIR", help="Add the model folders of this A1111 or Forge.")
@click.option(
    "--holds", type=click.Choice(HOLDS), default="both", help="What FOLDER holds [default: both]."
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


@command.command("list", params=json_options(), epilog="Example: loramerge library list")
def list_folders(as_json: bool, json_file: str | None) -> None:
    """List the folders of the library, with how many files each holds."""
    registry = load_registry()
    content: list[dict[str, Any]] = []
    for folder in registry.folders:
        alone = type(registry)(folders=[folder])
        holds = "bases" if folder.holds == "bases" else "adapters"
        count = sum(1 for _ in names_in_library(alone, holds))
        content.append({"path": folder.path, "holds": folder.holds, "files": count})

    def render() -> None:
        if not content:
            show.line("The library is empty. Add a folder: loramerge library add FOLDER")
        show.table(
            ((c["path"], c["holds"], c["files"]) for c in content), ("folder", "holds", "files")
        )

    emit(content, as_json, json_file, render)


@command.command("remove", epilog="Example: loramerge library remove ~/loras")
@click.argument("folder", metavar="FOLDER")
def remove(folder: str) -> None:
    """Take a folder off the library; its files stay."""
    with changed_registry() as registry:
        registry.remove_folder(expanded(folder))
    show.line("Removed the folder from the library; its files stay.")
