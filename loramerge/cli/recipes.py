"""The command `recipes`: list the recipes of loramerge, print one, or translate one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from loramerge.cli import show
from loramerge.cli.command import emit
from loramerge.cli.options import json_options
from loramerge.errors import LoramergeError, UsageError
from loramerge.recipe.shipped import Shipped, shipped_recipe, shipped_recipes


def _complete(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[click.shell_completion.CompletionItem]:
    from click.shell_completion import CompletionItem

    try:
        names = [recipe.name for recipe in shipped_recipes()]
    except (LoramergeError, OSError):
        return []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def _list(rows: list[tuple[str, str]]) -> None:
    show.table(rows, ("recipe", "purpose"))
    show.line("To use one, write it to a file: loramerge recipes NAME -o mine.yaml", wrap=False)


@click.command(
    "recipes",
    params=[
        click.Argument(["name"], metavar="[NAME]", required=False, shell_complete=_complete),
        click.Option(["--output", "-o"], metavar="FILE.yaml", help="Write the recipe here."),
        click.Option(
            ["--from-mergekit"],
            metavar="FILE",
            help="Translate a recipe of mergekit, or say what in it has no counterpart.",
        ),
        click.Option(
            ["--from-merge"],
            metavar="FILE",
            help="Make a recipe of what A1111, supermerger or sd-mecha wrote into a merged "
            "checkpoint.",
        ),
        click.Option(["--force", "-f"], is_flag=True, help="Replace an existing file."),
        *json_options(),
    ],
    epilog="Example: loramerge recipes; loramerge recipes style-and-character -o mine.yaml",
)
def command(
    name: str | None,
    output: str | None,
    from_mergekit: str | None,
    from_merge: str | None,
    force: bool,
    as_json: bool,
    json_file: str | None,
) -> None:
    """List the recipes that come with loramerge, or print one; translate merges of other programs.

    Write one to a file with -o. Then change the paths of its inputs (relative to the recipe's
    folder) and the values in `vars`, or give them with --input and --set.
    """
    if from_mergekit is not None or from_merge is not None:
        recipe = _translated(name, from_mergekit, from_merge, output)
        _show(recipe, output, force, as_json, json_file)
        return
    if name is None:
        if output is not None:
            raise UsageError(
                "the name of a recipe is missing", hint="loramerge recipes NAME -o FILE.yaml"
            )
        found = shipped_recipes()
        content = [{"name": recipe.name, "title": recipe.title} for recipe in found]
        rows = [(recipe.name, recipe.title) for recipe in found]
        emit(content, as_json, json_file, lambda: _list(rows))
        return
    _show(shipped_recipe(name), output, force, as_json, json_file)


def _translated(
    name: str | None, mergekit: str | None, merge: str | None, output: str | None
) -> Shipped:
    """Return the recipe of a merge of another program, and say what differs."""
    from loramerge.recipe.merges import from_merge, from_mergekit

    if sum(one is not None for one in (name, mergekit, merge)) > 1:
        raise UsageError("give one of NAME, --from-mergekit and --from-merge")
    folder = Path(output).parent if output is not None else Path()
    if mergekit is not None:
        path = Path(mergekit)
        text, notes = from_mergekit(path, folder)
    else:
        path = Path(str(merge))
        text, notes = from_merge(path)
    for note in notes:
        click.echo(f"note: {note}", err=True)
    return Shipped(path.stem, text)


def _show(
    recipe: Shipped, output: str | None, force: bool, as_json: bool, json_file: str | None
) -> None:
    """Write a recipe, or print it."""
    if output is not None:
        from loramerge.files.writer import write_bytes

        write_bytes(Path(output), recipe.text.encode("utf-8"), force=force)
    one: dict[str, Any] = {
        "outputs": [] if output is None else [output],
        "name": recipe.name,
        "title": recipe.title,
        "text": recipe.text,
    }

    def shown() -> None:
        if output is None:
            sys.stdout.write(recipe.text)
        else:
            show.table([("written", output), ("recipe", recipe.title)])

    emit(one, as_json, json_file, shown)
