"""The command `families`: list the base architectures that are known."""

from __future__ import annotations

from typing import Any

import click

from loramerge.cli import show
from loramerge.cli.command import emit
from loramerge.cli.options import json_options
from loramerge.families import FAMILIES


@click.command("families", params=json_options(), epilog="Example: loramerge families")
def command(as_json: bool, json_file: str | None) -> None:
    """List the base architectures that are known, and what their tables are verified against.

    Adapters of a family that is read-only are looked at, mixed and resized, but not baked or converted.
    """
    content: list[dict[str, Any]] = [
        {
            "name": family.name,
            "title": family.title,
            "components": {c.name: len(c.modules) for c in family.components},
            "layouts": sorted({s.layout for found in family.spellings.values() for s in found}),
            "verified": family.verified or None,
            "read_only": not family.proven,
        }
        for family in FAMILIES.values()
    ]

    def render() -> None:
        show.table(
            (
                (
                    f["name"],
                    f["title"],
                    ", ".join(f"{name} {n}" for name, n in f["components"].items()),
                    ", ".join(f["layouts"]),
                    f["verified"] or "nothing: read-only",
                )
                for f in content
            ),
            ("family", "description", "modules", "layouts", "verified against"),
        )

    emit(content, as_json, json_file, render)
