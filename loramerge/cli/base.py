"""The command `base`: name the checkpoints you use often."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from loramerge.cli import show
from loramerge.cli.command import emit
from loramerge.cli.options import json_options
from loramerge.errors import NotFound
from loramerge.library.registry import changed_registry, expanded, load_registry
from loramerge.library.shipped import SHIPPED_BASES

_EXAMPLE = "Example: loramerge base add sd21-custom models/sd21-custom.safetensors"


@click.group("base", epilog=_EXAMPLE)
def command() -> None:
    """Name the checkpoints you use often; the name then works wherever a base is expected."""


@command.command("add", epilog=_EXAMPLE)
@click.argument("name", metavar="NAME")
@click.argument("path", metavar="PATH")
@click.option("--force", "-f", is_flag=True, help="Replace a base of the same name.")
def add(name: str, path: str, force: bool) -> None:
    """Register the checkpoint at PATH (a file or a diffusers folder) as NAME."""
    from loramerge.checkpoint.files import find_files

    place = expanded(path)
    if not place.exists():
        raise NotFound("no such checkpoint", file=path)
    find_files(place).require_readable()
    with changed_registry() as registry:
        registry.add_base(name, place, force=force)
    show.line(f"{name} is {place.resolve()}")


@command.command("list", params=json_options(), epilog="Example: loramerge base list --json")
def list_bases(as_json: bool, json_file: str | None) -> None:
    """List the registered checkpoints, and those that come with loramerge."""
    bases: dict[str, str] = load_registry().bases

    def render() -> None:
        if not bases:
            show.line("No base is registered. Add one: loramerge base add NAME PATH")
        show.line(f"Bases that come with loramerge: {', '.join(SHIPPED_BASES)}")
        show.table(
            ((n, p, "ok" if Path(p).exists() else "missing") for n, p in sorted(bases.items())),
            ("name", "path", "state"),
        )

    content: list[dict[str, Any]] = [
        {"name": n, "path": p, "exists": Path(p).exists(), "shipped": False}
        for n, p in sorted(bases.items())
    ] + [
        {"name": n, "path": None, "exists": True, "shipped": True}
        for n in SHIPPED_BASES
        if n not in bases
    ]
    emit(content, as_json, json_file, render)


@command.command("remove", epilog="Example: loramerge base remove sd21-custom")
@click.argument("name", metavar="NAME")
def remove(name: str) -> None:
    """Forget a registered checkpoint; its files stay."""
    with changed_registry() as registry:
        registry.remove_base(name)
    show.line(f"Removed {name} from the list; its files stay.")
