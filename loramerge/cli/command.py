"""The command of a verb, derived from its parameters, and how results are shown."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from loramerge.cli.commands import Render
from loramerge.cli.options import option_of, recipe_options, run_options
from loramerge.cli.session import Session
from loramerge.steps import engine
from loramerge.steps.parameters import Context, Verb, parameters_of

__all__ = ["Render", "emit", "verb_command"]

_COMMON = ("as_json", "json_file", "quiet", "threads", "device", "save_recipe", "strip")


def verb_command(verb: Verb, render: Render, example: str) -> click.Command:
    """Make the command of a verb; its options and its help text are those of the parameters.

    Args:
        render: shows a result to people.
        example: a command line that works, shown in the help.
    """
    kind = verb.parameters if verb.for_files is None else verb.for_files.parameters
    known = parameters_of(kind)
    own = {one.name for one in known}  # meta has a --strip of its own

    def callback(**values: Any) -> int:
        common: dict[str, Any] = {
            key: None if key in own else values.pop(key, None) for key in _COMMON
        }
        json_file, save_recipe = common["json_file"], common["save_recipe"]
        _check_json_file(json_file)
        _check_recipe_file(save_recipe)
        parameters = engine.parameters_from(kind, values)
        with Session(quiet=common["quiet"]) as session:
            context = Context(
                common["threads"], common["device"], session.notify, bool(common["strip"])
            )
            result = engine.perform(verb, parameters, context)
            if save_recipe is not None:
                _save_recipe(save_recipe, verb.name, parameters, result)
        shown = (lambda: None) if common["quiet"] else lambda: render(result)
        emit(result.json(), common["as_json"], json_file, shown)
        return int(getattr(result, "exit_code", 0))

    fields = [option_of(one) for one in known]
    fields.sort(key=lambda p: not isinstance(p, click.Argument))
    about_recipes = recipe_options(writes=verb.writes) if verb.in_recipes else []
    return click.Command(
        verb.name,
        callback=callback,
        params=[*fields, *about_recipes, *run_options()],
        help=kind.__doc__,
        epilog=f"Example: {example}",
        no_args_is_help=any(isinstance(p, click.Argument) and p.required for p in fields),
    )


def _save_recipe(text: str, verb: str, parameters: Any, result: Any) -> None:
    from loramerge.recipe.writing import write_recipe

    write_recipe(Path(text), [(verb, *step) for step in engine.steps_done(parameters, result)])


def _check_recipe_file(text: str | None) -> None:
    """Refuse to write a recipe over something.

    Raises:
        OutputExists: if the path exists.
    """
    if text is not None and os.path.exists(text):
        from loramerge.errors import OutputExists

        raise OutputExists("the recipe exists", file=text, hint="give --save-recipe another name")


def _check_json_file(text: str | None) -> None:
    """Refuse to write JSON over something else.

    Raises:
        OutputExists: if the path is a folder, or a file that holds no JSON.
    """
    if text is None or not os.path.exists(text):
        return
    path = Path(text)
    if path.is_dir() or path.read_bytes()[:1] not in (b"[", b"{", b""):
        from loramerge.errors import OutputExists

        raise OutputExists(
            "--json-file would replace something that is no JSON",
            file=path,
            hint="give --json-file another name",
        )


def emit(content: Any, as_json: bool, json_file: str | None, show: Callable[[], None]) -> None:
    """Show a result: as JSON on standard output or in a file, else for people."""
    if as_json or json_file:
        text = json.dumps(_plain(content), ensure_ascii=False, indent=2)
        if json_file:
            from loramerge.files.writer import write_bytes

            write_bytes(Path(json_file), (text + "\n").encode("utf-8", "replace"), force=True)
        if as_json:
            sys.stdout.write(text + "\n")
            return
    show()


def _plain(value: Any) -> Any:
    """Return a value that every JSON reader takes: no NaN or infinity, text keys."""
    if isinstance(value, dict):
        return {_key(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _key(key: Any) -> str:
    return f"{key:g}" if isinstance(key, float) else str(key)
