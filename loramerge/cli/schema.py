"""The command `schema`: print the JSON Schema of recipes."""

from __future__ import annotations

import click

from loramerge.cli.command import emit
from loramerge.cli.options import json_options, operator_option


@click.command(
    "schema",
    params=[operator_option(), *json_options()],
    epilog="Example: loramerge schema --json-file recipe.schema.json",
)
def command(as_json: bool, json_file: str | None) -> None:
    """Print the JSON Schema of recipes, for editors that check and complete YAML.

    In an editor with a YAML language server, a first line
    `# yaml-language-server: $schema=recipe.schema.json` is enough.
    """
    from loramerge.recipe.json_schema import json_schema

    schema = json_schema()
    emit(schema, as_json or not json_file, json_file, lambda: None)
