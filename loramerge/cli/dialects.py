"""The command `dialects`: list the file formats (dialects) that are read and written."""

from __future__ import annotations

import click

from loramerge.cli import show
from loramerge.cli.command import emit
from loramerge.cli.options import json_options
from loramerge.dialects import DIALECTS, programs_of
from loramerge.dialects.programs import readers_of


@click.command("dialects", params=json_options(), epilog="Example: loramerge dialects")
def command(as_json: bool, json_file: str | None) -> None:
    """List the dialects: the formats in which programs store adapters."""
    content = [
        {
            "name": dialect.name,
            "title": dialect.title,
            "example": dialect.example,
            "alpha": dialect.alpha,
            "writes": dialect.writable,
            "loads_in": [program.title for program in readers_of(dialect.name)],
            "programs": programs_of(dialect.name),
        }
        for dialect in DIALECTS.values()
    ]

    def render() -> None:
        show.table(
            ((d["name"], d["title"], d["writes"], ", ".join(d["loads_in"])) for d in content),
            ("dialect", "what it is", "can store", "seen to load in"),
        )

    emit(content, as_json, json_file, render)
