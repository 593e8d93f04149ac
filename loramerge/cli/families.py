"""The command `families`: list the base models that are known."""

from __future__ import annotations

from typing import Any

import click

from loramerge.cli import show
from loramerge.cli.command import emit
from loramerge.cli.options import json_options
from loramerge.families import FAMILIES


@click.command("families", params=json_options(), epilog="Example: loramerge families")
def command(as_json: bool, json_file: str | None) -> None:
    """List the base models that are known: their components and the layouts of their files.

    Every family was verified against the model's original code; --json says which. Adapters of a
    read-only family are inspected, mixed and resized, but not baked or converted.
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
                    f["title"] + (" (read-only)" if f["read_only"] else ""),
                    ", ".join(f["components"]),
                    ", ".join(f["layouts"]),
                )
                for f in content
            ),
            ("family", "base model", "components", "layouts of files"),
        )

    emit(content, as_json, json_file, render)
